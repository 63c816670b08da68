// System calls, thin: named after the call, borrowed in, owned out, a
// NativeError when they fail. `try_` variants hand back the errno where a
// failure is part of the plan (ESRCH: the target has gone).
//
// Interruption: the core installs no signal handlers, so EINTR reaches it only
// through stop signals from outside (SIGSTOP, SIGCONT). Calls that may block
// repeat on EINTR; the others cannot see it.
#pragma once

#include <linux/stat.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/unique_fd.h"

struct statx;

namespace stasis::sys {

// The result of a call that may fail as part of the plan.
template <typename Value>
struct Try {
  Value value{};
  int error = 0;  // errno, 0 = it worked
  bool ok() const { return error == 0; }
};

// --- files

UniqueFd openat(int directory, const char* path, int flags, mode_t mode = 0);  // always O_CLOEXEC
Try<UniqueFd> try_openat(int directory, const char* path, int flags, mode_t mode = 0);
// `resolve`: of openat2(2), RESOLVE_*.
Try<UniqueFd> try_openat2(int directory, const char* path, uint64_t flags, uint64_t resolve);

// Everything from the current position to the end. /proc files are read in large
// pieces: many of them are consistent only within one read(2).
std::string read_all(int fd);
std::string read_file(int directory, const char* path);  // open and read_all
Try<std::string> try_read_file(int directory, const char* path);
// The same of a file that is open, from its start. `one_piece`: a read(2) that is short has seen the end.
Try<std::string> try_read_again(int fd, bool one_piece);

// Writes all of it or throws; repeats on EINTR and short writes.
void write_all(int fd, const void* data, size_t length_bytes);
// One write(2) to a control file ("cgroup.freeze"): never split.
void write_file(int directory, const char* path, std::string_view content);
Try<bool> try_write_file(int directory, const char* path, std::string_view content);

std::string readlinkat(int directory, const char* path);
Try<std::string> try_readlinkat(int directory, const char* path);

// statx(2) with STATX_BASIC_STATS | STATX_MNT_ID.
Try<struct statx> try_statx(int directory, const char* path, int flags);
Try<int64_t> try_fstatfs_type(int fd);
Try<int64_t> try_statfs_type(const char* path);

Try<int64_t> try_fcntl(int fd, int command, uint64_t argument);
Try<int64_t> try_ioctl(int fd, unsigned long request, void* argument);

// --- descriptors of our own

// Closes all others; numbers below zero are nobody's. For a child that was
// forked: what it holds by chance keeps files busy, and hides the end of others.
void close_all_but(std::vector<int> kept);
// To the hard one: it is of no use to anybody while it is lower. Gives the limit.
size_t raise_descriptor_limit();

// --- processes

UniqueFd pidfd_open(pid_t host_pid);
Try<UniqueFd> try_pidfd_open(pid_t host_pid);
Try<UniqueFd> try_pidfd_getfd(int pidfd, TargetFd target_fd);
Try<bool> try_pidfd_send_signal(int pidfd, int signal);
// 0 equal, 1 less, 2 greater (linux/kcmp.h; 3: unequal, no order).
Try<int> try_kcmp(pid_t first_host_pid, pid_t second_host_pid, int type, uint64_t first, uint64_t second);
Try<bool> try_tgkill(pid_t host_tgid, pid_t host_tid, int signal);
// waitpid(2) with __WALL; value is 0 if WNOHANG found nothing. `status` is set otherwise.
Try<pid_t> try_waitpid(pid_t host_pid, int* status, int options);
// The same, but a signal handler ends it: EINTR.
Try<pid_t> try_waitpid_once(pid_t host_pid, int* status, int options);
void setns(int fd, int namespace_type);

// Memory of another process. Short results are handed back: the first address
// that could not be read is remote + value. error is set only if nothing was read.
Try<size_t> try_process_vm_readv(pid_t host_pid, const iovec* local, size_t local_count, const iovec* remote,
                                 size_t remote_count);
Try<size_t> try_process_vm_write(pid_t host_pid, const void* local, uint64_t remote, size_t length_bytes);
Try<size_t> try_process_vm_read(pid_t host_pid, void* local, uint64_t remote, size_t length_bytes);
Try<size_t> try_pread(int fd, void* buffer, size_t length_bytes, uint64_t offset);
// All of it, or what there is before the end of the file.
Try<size_t> try_pread_all(int fd, void* buffer, size_t length_bytes, uint64_t offset);
Try<size_t> try_pwrite(int fd, const void* data, size_t length_bytes, uint64_t offset);

// --- memory of our own

class Mapping {
 public:
  Mapping() = default;
  Mapping(void* address, size_t length_bytes) : address_(address), length_bytes_(length_bytes) {}
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();
  unsigned char* data() const { return static_cast<unsigned char*>(address_); }
  uint64_t address() const { return reinterpret_cast<uint64_t>(address_); }
  size_t length_bytes() const { return length_bytes_; }
  bool valid() const { return address_ != nullptr; }

 private:
  void* address_ = nullptr;
  size_t length_bytes_ = 0;
};

Mapping mmap(uint64_t address, size_t length_bytes, int protection, int flags, int fd = -1, uint64_t offset = 0);
Try<Mapping> try_mmap(uint64_t address, size_t length_bytes, int protection, int flags, int fd = -1,
                      uint64_t offset = 0);

// --- sockets

UniqueFd socket(int family, int type, int protocol);  // always SOCK_CLOEXEC
// The value as long as the kernel said, at most 4096 bytes.
Try<std::string> try_getsockopt(int fd, int level, int name);

// The raw call, for those that libc lacks and that one file needs; the errno is in the result.
Try<int64_t> try_syscall(long number, uint64_t a = 0, uint64_t b = 0, uint64_t c = 0, uint64_t d = 0, uint64_t e = 0,
                         uint64_t f = 0);

}  // namespace stasis::sys
