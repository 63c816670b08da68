#include "executor/janitor.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "base/deadline.h"
#include "base/passed_descriptors.h"
#include "base/sys.h"
#include "executor/undo.h"

namespace stasis {
namespace {

constexpr uint64_t kKillTimeoutMs = 30'000;
constexpr char kWatch = 'w';
constexpr char kAnswer = 'a';
constexpr char kDismiss = 'd';
constexpr char kTakeBack = 't';
// A killed requester goes within the system call that it is in; one that has not been killed does not wait for us.
constexpr uint64_t kRequesterTimeoutMs = 250;

// Invalid if it has died already: then it has not been told that it may make anything.
UniqueFd open_requester() {
  const pid_t host_pid = ::getppid();
  auto pidfd = sys::try_pidfd_open(host_pid);
  if (!pidfd.ok() || ::getppid() != host_pid) return UniqueFd();  // the second look: the number was still its own
  return std::move(pidfd.value);
}

void kill_and_wait(const std::vector<UniqueFd>& pidfds) {
  for (const UniqueFd& pidfd : pidfds) sys::try_pidfd_send_signal(pidfd.borrow(), SIGKILL);
  const Deadline deadline = Deadline::in_ms(kKillTimeoutMs);
  for (const UniqueFd& pidfd : pidfds) wait_readable(pidfd.borrow(), deadline);
}

[[noreturn]] void run_janitor(int socket, const UniqueFd& requester, const std::vector<UndoAction>& undo,
                              const Hole* hole) {
  ::setsid();
  ::prctl(PR_SET_NAME, "stasis-janitor", 0, 0, 0);
  (void)!::chdir("/");
  sys::close_all_but({socket, requester.borrow()});
  sys::raise_descriptor_limit();  // one pidfd per process of the tree
  std::vector<UniqueFd> pidfds;
  UniqueFd answer;
  bool core_lives = false;
  while (!core_lives) {
    ReceivedByte received = receive_with_descriptors(socket);
    if (received.length <= 0) break;
    const char word = received.byte;
    if (word == kDismiss) {
      if (answer.valid()) (void)!::write(answer.borrow(), "0", 1);
      ::_exit(0);
    }
    core_lives = word == kTakeBack;
    for (UniqueFd& descriptor : received.descriptors) {
      if (word == kAnswer) answer = std::move(descriptor);
      if (word == kWatch) pidfds.push_back(std::move(descriptor));
    }
  }
  if (hole) hole->fail_all();  // before anything else: tasks that nobody knows of leave by themselves
  kill_and_wait(pidfds);
  perform_undo(undo);  // failures: nobody is left to hear of them
  if (!core_lives && requester.valid() && wait_readable(requester.borrow(), Deadline::in_ms(kRequesterTimeoutMs)))
    perform_undo(undo);
  ::_exit(0);
}

}  // namespace

Janitor::Janitor(const std::vector<UndoAction>& undo, const Hole& hole) : Janitor(undo, &hole) {}

Janitor::Janitor(const std::vector<UndoAction>& undo) : Janitor(undo, nullptr) {}

Janitor::Janitor(const std::vector<UndoAction>& undo, const Hole* hole) {
  STASIS_CONTEXT("starting the janitor");
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
    throw NativeError::from_errno("socketpair", errno);
  UniqueFd ours(ends[0]), theirs(ends[1]);
  const UniqueFd requester = open_requester();
  host_pid_ = ::fork();
  if (host_pid_ < 0) throw NativeError::from_errno("fork", errno);
  if (host_pid_ == 0) {
    ours.reset();  // or it would never see end of file
    try {
      run_janitor(theirs.borrow(), requester, undo, hole);
    } catch (...) {
      ::_exit(1);
    }
  }
  socket_ = std::move(ours);
}

Janitor::~Janitor() {
  // The word tells our taking back from our death. If it has died it cannot be told.
  if (socket_.valid()) (void)!::send(socket_.borrow(), &kTakeBack, 1, MSG_NOSIGNAL);
  socket_.reset();
  int status;
  while (::waitpid(host_pid_, &status, 0) < 0 && errno == EINTR) {
  }
}

void Janitor::watch(int pidfd) { hand_over(kWatch, pidfd, "telling the janitor of a process"); }

void Janitor::answer_when_dismissed(int pipe) { hand_over(kAnswer, pipe, "telling the janitor whom to answer"); }

void Janitor::hand_over(char word, int fd, const char* what) {
  if (send_with_descriptors(socket_.borrow(), {&word, 1}, {&fd, 1}) < 0) {
    throw NativeError::from_errno("sendmsg", errno).with_what(what).with_pid(host_pid_);
  }
}

void Janitor::dismiss() {
  if (!socket_.valid()) return;
  const char word = kDismiss;
  // If it has died it can do no harm either.
  (void)!::send(socket_.borrow(), &word, 1, MSG_NOSIGNAL);
  socket_.reset();
}

}  // namespace stasis
