#include "capture/connection_guard.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <exception>

#include "base/log_ring.h"
#include "base/native_error.h"
#include "base/sys.h"

namespace stasis {
namespace {

constexpr char kReady = 'r';  // the guard's, all others are orders
constexpr char kEnd = 'e';
constexpr char kDismissed = 'x';
constexpr int kPatienceMs = 30'000;

// Above the core, which dies at the lowest real-time priority: its descriptors are closed, and we are woken, before it
// lets go of the tree (exit_files() and exit_notify() of do_exit()); so we run before the tree does.
void raise_priority() {
  const sched_param above_core{2};
  if (::sched_setscheduler(0, SCHED_RR, &above_core) < 0)
    log_line("the guard of connections has no real-time priority");
}

[[noreturn]] void run_guard(int orders, const ConnectionGuard::Duties& duties) {
  ::prctl(PR_SET_NAME, "stasis-guard", 0, 0, 0);
  raise_priority();
  if (::send(orders, &kReady, sizeof kReady, MSG_NOSIGNAL) < 0) log_line("nobody waits for the guard of connections");
  bool ends = false;
  for (;;) {
    char order = 0;
    const ssize_t count = ::recv(orders, &order, sizeof order, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    if (order == kDismissed) ::_exit(0);
    ends = order == kEnd;
  }
  try {
    if (ends) {
      for (const int pidfd : duties.pidfds) sys::try_pidfd_send_signal(pidfd, SIGKILL);
      for (const int pidfd : duties.pidfds) {
        pollfd exited{pidfd, POLLIN, 0};
        ::poll(&exited, 1, kPatienceMs);
      }
      duties.after_end();
    } else {
      duties.put_right();
    }
  } catch (const std::exception& error) {
    log_line("guard of connections: %s", error.what());
    flush_log();
  }
  ::_exit(0);
}

}  // namespace

ConnectionGuard::ConnectionGuard(const Duties& duties, const Deadline& deadline) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
    throw NativeError::from_errno("socketpair", errno);
  orders_ = UniqueFd(ends[0]);
  const UniqueFd theirs(ends[1]);
  host_pid_ = ::fork();
  if (host_pid_ < 0) throw NativeError::from_errno("fork", errno);
  if (host_pid_ != 0) {
    wait_until_ready(deadline);
    return;
  }
  ::setsid();  // a signal to our group is not for it
  // Nobody may wait for it: the control stream ends when the core does. 2 is for its log.
  std::vector<int> kept = duties.descriptors;
  kept.insert(kept.end(), duties.pidfds.begin(), duties.pidfds.end());
  kept.push_back(STDERR_FILENO);
  kept.push_back(theirs.borrow());
  sys::close_all_but(kept);
  run_guard(theirs.borrow(), duties);
}

// If we died before it looks out for that, the tree would run, and meet connections in repair mode, before it is there.
void ConnectionGuard::wait_until_ready(const Deadline& deadline) {
  char answer = 0;
  if (!wait_readable(orders_.borrow(), deadline)) throw NativeError("deadline", "waiting for the guard of connections");
  if (::recv(orders_.borrow(), &answer, sizeof answer, 0) != sizeof answer || answer != kReady)
    throw NativeError("bug", "the guard of connections did not start");
}

ConnectionGuard::~ConnectionGuard() {
  dismiss();
  int status = 0;
  if (host_pid_ > 0) sys::try_waitpid(host_pid_, &status, 0);
}

void ConnectionGuard::tell_end() {
  if (::send(orders_.borrow(), &kEnd, sizeof kEnd, MSG_NOSIGNAL) != sizeof kEnd)
    throw NativeError::from_errno("send", errno).with_what("telling the guard of connections that the tree ends");
}

void ConnectionGuard::dismiss() noexcept {
  if (!orders_.valid()) return;
  if (::send(orders_.borrow(), &kDismissed, sizeof kDismissed, MSG_NOSIGNAL) < 0)
    log_line("the guard of connections has gone");
  orders_.reset();
}

}  // namespace stasis
