#include "capture/memory_tracking.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <set>

#include "base/deadline.h"
#include "base/fault_point.h"
#include "base/log_ring.h"
#include "base/native_error.h"
#include "base/sys.h"
#include "proc/proc_dir.h"

namespace stasis {
namespace {

// Which our oldest headers lack (linux/userfaultfd.h).
constexpr uint64_t kFeatureUnpopulated = 1u << 13, kFeatureAsync = 1u << 15;

constexpr const char* kKeeperName = "stasis-keeper";
// Descriptors of a keeper: its orders, its table, then a userfaultfd and a pidfd for each task.
constexpr int kOrders = 3, kTable = 4, kFirstTask = 5;
constexpr size_t kMaximalTasks = 65536;
constexpr uint64_t kEndPatienceMs = 5'000;

struct TableEntry {
  uint64_t start_ticks;
  int32_t host_pid;
  int32_t uffd;  // its number in the keeper
};

// The words of /proc/PID/cmdline.
std::vector<std::string> command_line(const ProcDir& proc) {
  std::vector<std::string> words;
  const std::string text = proc.read_or_empty("cmdline");
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\0', at), text.size());
    words.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return words;
}

bool is_same_program(const ProcDir& proc) {
  struct stat own {
  }, other{};
  return ::stat("/proc/self/exe", &own) == 0 && ::fstatat(proc.borrow(), "exe", &other, 0) == 0 &&
         own.st_dev == other.st_dev && own.st_ino == other.st_ino;
}

void remark_on(CaptureContext& context, pid_t host_pid, int error) {
  context.data.remarks.push_back("changes in the memory of pid " + std::to_string(host_pid) +
                                 " are not noted for the next checkpoint (" + errno_name(error) + ")");
}

}  // namespace

MemoryTracking::MemoryTracking(const CaptureRequest& request) : request_(request) {
  if (request.tracking_token.empty() && request.parent_token.empty()) return;
  find_keeper();
}

MemoryTracking::~MemoryTracking() = default;

// Only one of our own program can be one, whatever others call themselves.
void MemoryTracking::find_keeper() {
  for (const pid_t host_pid : process_ids()) {
    const std::optional<ProcDir> proc = ProcDir::try_open(host_pid);
    if (!proc || proc->read_or_empty("comm") != std::string(kKeeperName) + "\n") continue;
    sys::Try<UniqueFd> pidfd = sys::try_pidfd_open(host_pid);
    if (!pidfd.ok() || !is_same_program(*proc)) continue;
    const std::vector<std::string> words = command_line(*proc);
    if (words.size() < 5 || words[2] != std::to_string(request_.root_host_pid) ||
        (request_.root_start_ticks && words[3] != std::to_string(request_.root_start_ticks)))
      continue;
    old_keeper_ = std::move(pidfd.value);
    if (!request_.parent_token.empty() && words[4] == request_.parent_token) take_over(old_keeper_.borrow());
    return;
  }
}

void MemoryTracking::take_over(int keeper_pidfd) {
  const sys::Try<UniqueFd> table = sys::try_pidfd_getfd(keeper_pidfd, TargetFd(kTable));
  struct stat status {};
  if (!table.ok() || ::fstat(table.value.borrow(), &status) < 0) return;
  const size_t count = static_cast<size_t>(status.st_size) / sizeof(TableEntry);
  if (count > kMaximalTasks) return;
  std::vector<TableEntry> entries(count);
  const sys::Try<size_t> read = sys::try_pread(table.value.borrow(), entries.data(), count * sizeof(TableEntry), 0);
  if (!read.ok() || read.value != count * sizeof(TableEntry)) return;
  for (const TableEntry& entry : entries) {
    sys::Try<UniqueFd> uffd = sys::try_pidfd_getfd(keeper_pidfd, TargetFd(entry.uffd));
    if (uffd.ok()) tasks_[entry.host_pid] = {entry.start_ticks, std::move(uffd.value), true, {}};
  }
}

bool MemoryTracking::wants_uffd(const CapturedTask& task) const {
  if (request_.tracking_token.empty() || task.zombie) return false;
  const auto known = tasks_.find(task.host_pid);
  return known == tasks_.end() || known->second.start_ticks != stat_start_ticks(task.stat);
}

void MemoryTracking::take_uffd(CaptureContext& context, const CapturedTask& task, sys::Try<UniqueFd> uffd) {
  if (uffd.ok()) {
    uffdio_api api{};
    api.api = UFFD_API;
    api.features = kFeatureUnpopulated | kFeatureAsync;
    if (::ioctl(uffd.value.borrow(), UFFDIO_API, &api) < 0) uffd.error = errno;
  }
  if (!uffd.ok()) {
    uffd.value.reset();
    remark_on(context, task.host_pid, uffd.error);
  }
  tasks_[task.host_pid] = {stat_start_ticks(task.stat), std::move(uffd.value), false, {}};
}

void MemoryTracking::find_changes(const CapturedTask& task, const ProcDir& proc) {
  const auto known = tasks_.find(task.host_pid);
  if (known == tasks_.end() || !known->second.known_since_parent) return;
  Tracked& tracked = known->second;
  if (tracked.start_ticks != stat_start_ticks(task.stat)) {
    tracked.known_since_parent = false;
    return;
  }
  std::optional<std::vector<PageRun>> written =
      find_written_runs(sys::openat(proc.borrow(), "pagemap", O_RDONLY).borrow(), task.vmas);
  // A capture that is tried again has protected once: both looks count.
  if (written && tracked.changes) written = unite_runs(*tracked.changes, *written);
  if (!written) tracked.known_since_parent = false;
  tracked.changes = std::move(written);
}

const std::vector<PageRun>* MemoryTracking::changes_of(pid_t host_pid) const {
  const auto known = tasks_.find(host_pid);
  if (known == tasks_.end() || !known->second.known_since_parent || !known->second.changes) return nullptr;
  return &*known->second.changes;
}

// The keeper is no child of ours, or it was one of an earlier core's.
void MemoryTracking::end_old_keeper() {
  if (!old_keeper_.valid()) return;
  sys::try_pidfd_send_signal(old_keeper_.borrow(), SIGKILL);
  if (!wait_readable(old_keeper_.borrow(), Deadline::in_ms(kEndPatienceMs)))
    throw NativeError("deadline", "waiting for the end of the keeper of an earlier checkpoint");
  old_keeper_.reset();
}

// 0, or the errno of what could not be done.
int MemoryTracking::protect_task(const CapturedTask& task, const ProcDir& proc, int uffd) {
  for (const Vma& vma : task.vmas) {
    if (!has_own_pages(vma)) continue;
    uffdio_register request{};
    request.range = {vma.start, vma.end - vma.start};
    request.mode = UFFDIO_REGISTER_MODE_WP;
    const int error = sys::try_ioctl(uffd, UFFDIO_REGISTER, &request).error;
    // What cannot be registered counts as written for good (no PAGE_IS_WPALLOWED),
    // but not where it belongs to a userfaultfd of the program's own.
    if (error && error != EINVAL && error != EPERM) return error;
  }
  const UniqueFd pagemap = sys::openat(proc.borrow(), "pagemap", O_RDONLY);
  uint64_t from = 0, to = 0;
  const auto protect = [&] { return to > from ? try_protect_range(pagemap.borrow(), from, to).error : 0; };
  for (const Vma& vma : task.vmas) {
    if (!has_own_pages(vma)) continue;
    if (vma.start != to) {
      if (const int error = protect()) return error;
      from = vma.start;
    }
    to = vma.end;
  }
  return protect();
}

void MemoryTracking::protect(CaptureContext& context) {
  if (request_.tracking_token.empty()) return;
  fault_point("protect_memory");
  end_old_keeper();
  std::set<pid_t> seen;
  for (size_t i = 0; i < context.data.tasks.size(); ++i) {
    const CapturedTask& task = context.data.tasks[i];
    const auto known = tasks_.find(task.host_pid);
    if (task.zombie || known == tasks_.end() || !known->second.uffd.valid()) continue;
    STASIS_CONTEXT("protecting memory to see changes", task.host_pid);
    context.check_abort();
    seen.insert(task.host_pid);
    const int error = protect_task(task, context.tree.processes()[i]->proc, known->second.uffd.borrow());
    if (!error) continue;
    // Also after execve(2): the descriptor belongs to the memory before it.
    known->second.uffd.reset();
    remark_on(context, task.host_pid, error);
  }
  for (auto& [host_pid, tracked] : tasks_) {
    if (!seen.contains(host_pid)) tracked.uffd.reset();
  }
  protected_ = true;
  fault_point("memory_protected");
}

bool MemoryTracking::start_keeper() {
  if (!protected_) return false;
  std::vector<TableEntry> table;
  std::vector<UniqueFd> pidfds;
  std::vector<int> descriptors;
  for (const auto& [host_pid, tracked] : tasks_) {
    if (!tracked.uffd.valid()) continue;
    sys::Try<UniqueFd> pidfd = sys::try_pidfd_open(host_pid);
    if (!pidfd.ok()) continue;
    table.push_back({tracked.start_ticks, host_pid, kFirstTask + 2 * static_cast<int32_t>(table.size())});
    descriptors.push_back(tracked.uffd.borrow());
    descriptors.push_back(pidfd.value.borrow());
    pidfds.push_back(std::move(pidfd.value));
  }
  if (table.empty()) return false;
  const UniqueFd memory(static_cast<int>(
      sys::try_syscall(SYS_memfd_create, reinterpret_cast<uint64_t>("stasis-keeper"), MFD_CLOEXEC).value));
  if (!memory.valid()) throw NativeError::from_errno("memfd_create", errno);
  sys::write_all(memory.borrow(), table.data(), table.size() * sizeof(TableEntry));
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
    throw NativeError::from_errno("socketpair", errno);
  keep_ = UniqueFd(ends[0]);
  const UniqueFd theirs(ends[1]);
  const std::string root = std::to_string(request_.root_host_pid);
  const std::string ticks = std::to_string(request_.root_start_ticks);
  const std::string count = std::to_string(table.size());
  const pid_t child = ::fork();
  if (child < 0) throw NativeError::from_errno("fork", errno);
  if (child == 0) {
    // Twice, so that it is nobody's child: we go, it stays.
    ::setsid();
    if (::fork() != 0) ::_exit(0);
    const sys::Try<UniqueFd> nothing = sys::try_openat(AT_FDCWD, "/dev/null", O_RDWR);
    if (!nothing.ok()) ::_exit(1);
    std::vector<int> all = {theirs.borrow(), memory.borrow()};
    all.insert(all.end(), descriptors.begin(), descriptors.end());
    const int out_of_the_way = kOrders + static_cast<int>(all.size());
    for (int& fd : all) fd = ::fcntl(fd, F_DUPFD_CLOEXEC, out_of_the_way);
    for (size_t i = 0; i < all.size(); ++i) {
      if (::dup2(all[i], kOrders + static_cast<int>(i)) < 0) ::_exit(1);
    }
    for (int fd = 0; fd < kOrders; ++fd) ::dup2(nothing.value.borrow(), fd);
    sys::try_syscall(SYS_close_range, static_cast<uint64_t>(out_of_the_way), UINT_MAX, 0);
    if (::chdir("/") < 0) ::_exit(1);
    ::execl("/proc/self/exe", "stasis-core", "keep", root.c_str(), ticks.c_str(), request_.tracking_token.c_str(),
            count.c_str(), nullptr);
    ::_exit(1);
  }
  int status = 0;
  sys::try_waitpid(child, &status, 0);
  fault_point("keeper_started");
  // Until it has its name, nobody could find it.
  char ready = 0;
  if (!wait_readable(keep_.borrow(), Deadline::in_ms(kEndPatienceMs)) || ::recv(keep_.borrow(), &ready, 1, 0) != 1) {
    log_line("changes of memory are not noted for the next checkpoint: the process that keeps note did not start");
    keep_.reset();
    return false;
  }
  return true;
}

void MemoryTracking::keep() {
  if (!keep_.valid()) return;
  fault_point("keep");
  const char word = 'k';
  if (::send(keep_.borrow(), &word, 1, MSG_NOSIGNAL) != 1) log_line("the keeper has gone");
  keep_.reset();
}

int run_keep_command(int argc, char** argv) {
  if (argc != 6) return 2;
  ::prctl(PR_SET_NAME, kKeeperName);
  const long count = std::strtol(argv[5], nullptr, 10);
  if (count < 1 || static_cast<size_t>(count) > kMaximalTasks) return 2;
  char word = 'r';
  if (::send(kOrders, &word, 1, MSG_NOSIGNAL) != 1) return 1;
  // The core's end without a word: its capture has come to nothing.
  ssize_t got = 0;
  do {
    got = ::recv(kOrders, &word, 1, 0);
  } while (got < 0 && errno == EINTR);
  if (got != 1) return 0;
  ::close(kOrders);
  std::vector<pollfd> tasks;
  for (int i = 0; i < count; ++i) tasks.push_back({kFirstTask + 2 * i + 1, POLLIN, 0});
  size_t left = tasks.size();
  while (left > 0) {
    if (::poll(tasks.data(), tasks.size(), -1) < 0) {
      if (errno == EINTR) continue;
      return 1;
    }
    for (pollfd& task : tasks) {
      if (task.fd < 0 || task.revents == 0) continue;
      ::close(task.fd - 1);
      ::close(task.fd);
      task.fd = -1;
      --left;
    }
  }
  return 0;
}

}  // namespace stasis
