#include "executor/lazy_memory.h"

#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/deadline.h"
#include "base/sys.h"
#include "executor/page_process.h"

namespace stasis {
namespace {

constexpr uint64_t kKillTimeoutMs = 30'000;

void log_to_descriptor_2(const char* text) { ::dprintf(2, "lazy pages: %s\n", text); }

void end_container(int root_pidfd) {
  sys::try_pidfd_send_signal(root_pidfd, SIGKILL);
  // The init of a pid namespace ends when all in it have ended.
  wait_readable(root_pidfd, Deadline::in_ms(kKillTimeoutMs));
}

// A process of its own that shares our table of descriptors, those it will get from forks included.
pid_t clone_with_shared_descriptors() {
  const auto cloned = sys::try_syscall(SYS_clone, CLONE_FILES | SIGCHLD);
  return cloned.ok() ? static_cast<pid_t>(cloned.value) : -1;
}

[[noreturn]] void run_guardian(LazyMemory& memory, UniqueFd socket, int root_pidfd) {
  ::setsid();
  ::prctl(PR_SET_NAME, "stasis-guardian", 0, 0, 0);
  (void)!::chdir("/");
  std::vector<int> kept{2, socket.borrow(), root_pidfd};
  for (const LazySpace& space : memory.spaces) kept.push_back(space.uffd.borrow());
  for (const LazyFile& file : memory.files) {
    if (file.file.valid()) kept.push_back(file.file.borrow());
  }
  // Before anything else: an inherited end of the janitor's or TypeScript's socket
  // would hide the coordinator's death from them.
  sys::close_all_but(std::move(kept));
  sys::raise_descriptor_limit();  // one userfaultfd per process that the program forks
  const pid_t host_pid = clone_with_shared_descriptors();
  if (host_pid == 0) {
    ::prctl(PR_SET_NAME, "stasis-pages", 0, 0, 0);
    ::_exit(run_page_process(memory, std::move(socket)));
  }
  int status = 0;
  if (host_pid > 0) {
    while (::waitpid(host_pid, &status, __WALL) < 0 && errno == EINTR) {
    }
  }
  if (host_pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == kAllPagesAreIn) ::_exit(kAllPagesAreIn);
  if (host_pid < 0) {
    log_to_descriptor_2("the page process could not be started");
  } else if (WIFSIGNALED(status)) {
    char text[160];
    std::snprintf(text, sizeof text, "the page process (pid %d) was killed by signal %d before all pages were in",
                  host_pid, WTERMSIG(status));
    log_to_descriptor_2(text);
  }
  const bool given_up = host_pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == kRestoreWasGivenUp;
  end_container(root_pidfd);
  if (!given_up) {
    log_to_descriptor_2(
        "the container has been ended, because what is missing of its memory would have read as zeros; restore it "
        "again from the images, or without --lazy-pages");
  }
  ::_exit(kPagesFailed);  // and now the userfaultfds go
}

}  // namespace

void PendingPages::add(uint64_t address, uint64_t length_bytes, uint32_t page_file, uint64_t file_offset_bytes) {
  erase(address, length_bytes);
  runs_[address] = {address + length_bytes, page_file, file_offset_bytes};
}

PendingPages::Piece PendingPages::at(uint64_t address, uint64_t at_most_bytes) const {
  auto after = runs_.upper_bound(address);
  if (after == runs_.begin()) return {};
  const auto& [start, run] = *std::prev(after);
  if (address >= run.end) return {};
  return {address, std::min(at_most_bytes, run.end - address), run.page_file,
          run.file_offset_bytes + (address - start)};
}

PendingPages::Piece PendingPages::first(uint64_t at_most_bytes) const {
  return runs_.empty() ? Piece{} : at(runs_.begin()->first, at_most_bytes);
}

void PendingPages::split(uint64_t address) {
  auto after = runs_.upper_bound(address);
  if (after == runs_.begin()) return;
  auto& [start, run] = *std::prev(after);
  if (start == address || address >= run.end) return;
  runs_[address] = {run.end, run.page_file, run.file_offset_bytes + (address - start)};
  run.end = address;
}

void PendingPages::erase(uint64_t address, uint64_t length_bytes) {
  split(address);
  split(address + length_bytes);
  runs_.erase(runs_.lower_bound(address), runs_.lower_bound(address + length_bytes));
}

void PendingPages::move(uint64_t from, uint64_t to, uint64_t length_bytes) {
  split(from);
  split(from + length_bytes);
  const auto begin = runs_.lower_bound(from), end = runs_.lower_bound(from + length_bytes);
  const std::vector<std::pair<uint64_t, Run>> moved(begin, end);
  runs_.erase(begin, end);
  erase(to, length_bytes);
  for (const auto& [address, run] : moved)
    runs_[address - from + to] = {run.end - from + to, run.page_file, run.file_offset_bytes};
}

LazyPages::LazyPages(LazyMemory memory, int root_pidfd) {
  STASIS_CONTEXT("starting the page process");
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
    throw NativeError::from_errno("socketpair", errno);
  UniqueFd ours(ends[0]), theirs(ends[1]);
  host_pid_ = ::fork();
  if (host_pid_ < 0) throw NativeError::from_errno("fork", errno);
  if (host_pid_ == 0) {
    ours.reset();  // or end of file would never be seen
    run_guardian(memory, std::move(theirs), root_pidfd);
  }
  socket_ = std::move(ours);
}

LazyPages::~LazyPages() {
  if (committed_) return;
  socket_.reset();
  int status;
  while (host_pid_ > 0 && ::waitpid(host_pid_, &status, 0) < 0 && errno == EINTR) {
  }
}

void LazyPages::check_alive() const {
  siginfo_t ended{};
  if (::waitid(P_PID, static_cast<id_t>(host_pid_), &ended, WEXITED | WNOHANG | WNOWAIT) == 0 && ended.si_pid != 0)
    throw NativeError("pages_gone", "the process that brings the memory in has ended; see the log");
}

void LazyPages::commit() {
  check_alive();
  const char word = kCommitted;
  if (::send(socket_.borrow(), &word, 1, MSG_NOSIGNAL) < 0)
    throw NativeError("pages_gone", "the process that brings the memory in has ended; see the log");
  committed_ = true;
  socket_.reset();
}

}  // namespace stasis
