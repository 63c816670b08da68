#include "base/sys.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/openat2.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <vector>

#include "base/native_error.h"

namespace stasis::sys {
namespace {

constexpr size_t kReadStepBytes = 64 << 10;

std::string path_text(int directory, const char* path) {
  if (path[0] == '/' || directory == AT_FDCWD) return path;
  return "descriptor " + std::to_string(directory) + "/" + path;
}

template <typename Value>
Try<Value> failed_try() {
  Try<Value> result;
  result.error = errno;
  return result;
}

}  // namespace

Try<UniqueFd> try_openat(int directory, const char* path, int flags, mode_t mode) {
  for (;;) {
    const int fd = ::openat(directory, path, flags | O_CLOEXEC, mode);
    if (fd >= 0) return {UniqueFd(fd), 0};
    if (errno != EINTR) return failed_try<UniqueFd>();
  }
}

Try<UniqueFd> try_openat2(int directory, const char* path, uint64_t flags, uint64_t resolve) {
  open_how how{};
  how.flags = flags | O_CLOEXEC;
  how.resolve = resolve;
  for (;;) {
    const long fd = ::syscall(SYS_openat2, directory, path, &how, sizeof how);
    if (fd >= 0) return {UniqueFd(static_cast<int>(fd)), 0};
    if (errno != EINTR) return failed_try<UniqueFd>();
  }
}

UniqueFd openat(int directory, const char* path, int flags, mode_t mode) {
  Try<UniqueFd> opened = try_openat(directory, path, flags, mode);
  if (!opened.ok()) throw NativeError::from_errno("openat", opened.error).with_path(path_text(directory, path));
  return std::move(opened.value);
}

namespace {

// Through one buffer per thread, so that a small text costs a small string: a
// capture holds thousands of them, and fresh memory costs page faults.
Try<std::string> try_read_all(int fd) {
  static thread_local char buffer[kReadStepBytes];
  Try<std::string> result;
  for (;;) {
    const ssize_t count = ::read(fd, buffer, sizeof buffer);
    if (count > 0) {
      result.value.append(buffer, static_cast<size_t>(count));
    } else if (count == 0) {
      return result;
    } else if (errno != EINTR) {
      result.error = errno;
      result.value.clear();
      return result;
    }
  }
}

}  // namespace

std::string read_all(int fd) {
  Try<std::string> content = try_read_all(fd);
  if (!content.ok()) throw NativeError::from_errno("read", content.error);
  return std::move(content.value);
}

Try<std::string> try_read_file(int directory, const char* path) {
  Try<UniqueFd> file = try_openat(directory, path, O_RDONLY);
  if (!file.ok()) return {{}, file.error};
  return try_read_all(file.value.borrow());
}

Try<std::string> try_read_again(int fd, bool one_piece) {
  static thread_local char buffer[kReadStepBytes];
  Try<std::string> result;
  for (;;) {
    const Try<size_t> count = try_pread(fd, buffer, sizeof buffer, result.value.size());
    if (!count.ok()) return {{}, count.error};
    result.value.append(buffer, count.value);
    if (count.value == 0 || (one_piece && count.value < sizeof buffer)) return result;
  }
}

std::string read_file(int directory, const char* path) {
  Try<std::string> content = try_read_file(directory, path);
  if (!content.ok()) throw NativeError::from_errno("read", content.error).with_path(path_text(directory, path));
  return std::move(content.value);
}

void write_all(int fd, const void* data, size_t length_bytes) {
  const char* next = static_cast<const char*>(data);
  while (length_bytes) {
    const ssize_t count = ::write(fd, next, length_bytes);
    if (count >= 0) {
      next += count;
      length_bytes -= static_cast<size_t>(count);
    } else if (errno != EINTR) {
      throw NativeError::from_errno("write", errno);
    }
  }
}

Try<bool> try_write_file(int directory, const char* path, std::string_view content) {
  Try<UniqueFd> file = try_openat(directory, path, O_WRONLY);
  if (!file.ok()) return {false, file.error};
  for (;;) {
    const ssize_t count = ::write(file.value.borrow(), content.data(), content.size());
    if (count == static_cast<ssize_t>(content.size())) return {true, 0};
    if (count >= 0) return {false, EIO};
    if (errno != EINTR) return failed_try<bool>();
  }
}

void write_file(int directory, const char* path, std::string_view content) {
  const Try<bool> written = try_write_file(directory, path, content);
  if (!written.ok()) throw NativeError::from_errno("write", written.error).with_path(path_text(directory, path));
}

Try<std::string> try_readlinkat(int directory, const char* path) {
  char text[8192];  // longer than PATH_MAX plus " (deleted)"
  const ssize_t length = ::readlinkat(directory, path, text, sizeof text);
  if (length < 0) return failed_try<std::string>();
  return {std::string(text, static_cast<size_t>(length)), 0};
}

std::string readlinkat(int directory, const char* path) {
  Try<std::string> link = try_readlinkat(directory, path);
  if (!link.ok()) throw NativeError::from_errno("readlinkat", link.error).with_path(path_text(directory, path));
  return std::move(link.value);
}

Try<struct statx> try_statx(int directory, const char* path, int flags) {
  Try<struct statx> result;
  if (::statx(directory, path, flags, STATX_BASIC_STATS | STATX_MNT_ID, &result.value) < 0) result.error = errno;
  return result;
}

Try<int64_t> try_fstatfs_type(int fd) {
  struct statfs facts;
  if (::fstatfs(fd, &facts) < 0) return failed_try<int64_t>();
  return {static_cast<int64_t>(facts.f_type), 0};
}

Try<int64_t> try_statfs_type(const char* path) {
  struct statfs facts;
  if (::statfs(path, &facts) < 0) return failed_try<int64_t>();
  return {static_cast<int64_t>(facts.f_type), 0};
}

Try<int64_t> try_fcntl(int fd, int command, uint64_t argument) {
  const int result = ::fcntl(fd, command, argument);
  if (result < 0) return failed_try<int64_t>();
  return {result, 0};
}

Try<int64_t> try_ioctl(int fd, unsigned long request, void* argument) {
  for (;;) {
    const int result = ::ioctl(fd, request, argument);
    if (result >= 0) return {result, 0};
    if (errno != EINTR) return failed_try<int64_t>();
  }
}

Try<UniqueFd> try_pidfd_open(pid_t host_pid) {
  const long fd = ::syscall(SYS_pidfd_open, host_pid, 0u);
  if (fd < 0) return failed_try<UniqueFd>();
  return {UniqueFd(static_cast<int>(fd)), 0};
}

void close_all_but(std::vector<int> kept) {
  std::sort(kept.begin(), kept.end());
  uint64_t next = 0;
  for (const int fd : kept) {
    if (fd < 0) continue;
    const uint64_t number = static_cast<uint64_t>(fd);
    if (number > next) try_syscall(SYS_close_range, next, number - 1, 0);
    next = number + 1;
  }
  try_syscall(SYS_close_range, next, UINT_MAX, 0);
}

size_t raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) < 0) throw NativeError::from_errno("getrlimit", errno);
  limit.rlim_cur = limit.rlim_max;
  if (::setrlimit(RLIMIT_NOFILE, &limit) < 0) throw NativeError::from_errno("setrlimit", errno);
  return static_cast<size_t>(limit.rlim_cur);
}

UniqueFd pidfd_open(pid_t host_pid) {
  Try<UniqueFd> opened = try_pidfd_open(host_pid);
  if (!opened.ok()) throw NativeError::from_errno("pidfd_open", opened.error).with_pid(host_pid);
  return std::move(opened.value);
}

Try<UniqueFd> try_pidfd_getfd(int pidfd, TargetFd target_fd) {
  const long fd = ::syscall(SYS_pidfd_getfd, pidfd, target_fd.number(), 0u);
  if (fd < 0) return failed_try<UniqueFd>();
  return {UniqueFd(static_cast<int>(fd)), 0};
}

Try<bool> try_pidfd_send_signal(int pidfd, int signal) {
  if (::syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0u) < 0) return failed_try<bool>();
  return {true, 0};
}

Try<int> try_kcmp(pid_t first_host_pid, pid_t second_host_pid, int type, uint64_t first, uint64_t second) {
  const long order = ::syscall(SYS_kcmp, first_host_pid, second_host_pid, type, first, second);
  if (order < 0) return failed_try<int>();
  return {static_cast<int>(order), 0};
}

Try<bool> try_tgkill(pid_t host_tgid, pid_t host_tid, int signal) {
  if (::syscall(SYS_tgkill, host_tgid, host_tid, signal) < 0) return failed_try<bool>();
  return {true, 0};
}

Try<pid_t> try_waitpid(pid_t host_pid, int* status, int options) {
  for (;;) {
    const pid_t waited = ::waitpid(host_pid, status, options | __WALL);
    if (waited >= 0) return {waited, 0};
    if (errno != EINTR) return failed_try<pid_t>();
  }
}

Try<pid_t> try_waitpid_once(pid_t host_pid, int* status, int options) {
  const pid_t waited = ::waitpid(host_pid, status, options | __WALL);
  return waited >= 0 ? Try<pid_t>{waited, 0} : failed_try<pid_t>();
}

void setns(int fd, int namespace_type) {
  if (::setns(fd, namespace_type) < 0) throw NativeError::from_errno("setns", errno);
}

Try<size_t> try_process_vm_readv(pid_t host_pid, const iovec* local, size_t local_count, const iovec* remote,
                                 size_t remote_count) {
  const ssize_t count = ::process_vm_readv(host_pid, local, local_count, remote, remote_count, 0);
  if (count < 0) return failed_try<size_t>();
  return {static_cast<size_t>(count), 0};
}

Try<size_t> try_process_vm_write(pid_t host_pid, const void* local, uint64_t remote, size_t length_bytes) {
  const iovec here{const_cast<void*>(local), length_bytes};
  const iovec there{reinterpret_cast<void*>(remote), length_bytes};
  const ssize_t count = ::process_vm_writev(host_pid, &here, 1, &there, 1, 0);
  if (count < 0) return failed_try<size_t>();
  return {static_cast<size_t>(count), 0};
}

Try<size_t> try_process_vm_read(pid_t host_pid, void* local, uint64_t remote, size_t length_bytes) {
  const iovec here{local, length_bytes};
  const iovec there{reinterpret_cast<void*>(remote), length_bytes};
  return try_process_vm_readv(host_pid, &here, 1, &there, 1);
}

Try<size_t> try_pread(int fd, void* buffer, size_t length_bytes, uint64_t offset) {
  for (;;) {
    const ssize_t count = ::pread(fd, buffer, length_bytes, static_cast<off_t>(offset));
    if (count >= 0) return {static_cast<size_t>(count), 0};
    if (errno != EINTR) return failed_try<size_t>();
  }
}

Try<size_t> try_pread_all(int fd, void* buffer, size_t length_bytes, uint64_t offset) {
  size_t done = 0;
  while (done < length_bytes) {
    const Try<size_t> count = try_pread(fd, static_cast<char*>(buffer) + done, length_bytes - done, offset + done);
    if (!count.ok()) return count;
    if (count.value == 0) break;
    done += count.value;
  }
  return {done, 0};
}

Try<size_t> try_pwrite(int fd, const void* data, size_t length_bytes, uint64_t offset) {
  for (;;) {
    const ssize_t count = ::pwrite(fd, data, length_bytes, static_cast<off_t>(offset));
    if (count >= 0) return {static_cast<size_t>(count), 0};
    if (errno != EINTR) return failed_try<size_t>();
  }
}

Mapping::Mapping(Mapping&& other) noexcept
    : address_(std::exchange(other.address_, nullptr)), length_bytes_(std::exchange(other.length_bytes_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(address_, other.address_);
  std::swap(length_bytes_, other.length_bytes_);
  return *this;
}

Mapping::~Mapping() {
  if (address_) ::munmap(address_, length_bytes_);
}

Try<Mapping> try_mmap(uint64_t address, size_t length_bytes, int protection, int flags, int fd, uint64_t offset) {
  void* mapped =
      ::mmap(reinterpret_cast<void*>(address), length_bytes, protection, flags, fd, static_cast<off_t>(offset));
  if (mapped == MAP_FAILED) return failed_try<Mapping>();
  return {Mapping(mapped, length_bytes), 0};
}

Mapping mmap(uint64_t address, size_t length_bytes, int protection, int flags, int fd, uint64_t offset) {
  Try<Mapping> mapped = try_mmap(address, length_bytes, protection, flags, fd, offset);
  if (!mapped.ok()) throw NativeError::from_errno("mmap", mapped.error).with_address(address);
  return std::move(mapped.value);
}

UniqueFd socket(int family, int type, int protocol) {
  const int fd = ::socket(family, type | SOCK_CLOEXEC, protocol);
  if (fd < 0) throw NativeError::from_errno("socket", errno);
  return UniqueFd(fd);
}

Try<std::string> try_getsockopt(int fd, int level, int name) {
  char value[4096];
  socklen_t length = sizeof value;
  if (::getsockopt(fd, level, name, value, &length) < 0) return failed_try<std::string>();
  return {std::string(value, length), 0};
}

Try<int64_t> try_syscall(long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f) {
  const long result = ::syscall(number, a, b, c, d, e, f);
  if (result < 0) return failed_try<int64_t>();
  return {result, 0};
}

}  // namespace stasis::sys
