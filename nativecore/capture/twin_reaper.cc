#include "capture/twin_reaper.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <string>
#include <vector>

#include "base/log_ring.h"
#include "base/native_error.h"
#include "base/sys.h"
#include "parasite/parasite_abi.h"
#include "parasite/self_return_frame.h"
#include "parasite/way_home.h"
#include "proc/proc_dir.h"
#include "trace/frozen_tree.h"
#include "trace/ptrace_calls.h"
#include "trace/thread_state.h"

namespace stasis {
namespace {

struct Order {
  pid_t host_pid;        // 0: finish
  pid_t twin_ns_pid;     // 0: announced only
  uint64_t start_ticks;  // of the target
  // When it was announced. Not when we heard of it: on a busy machine that is
  // after the twin's birth.
  int64_t announced_ticks;
};

// While somebody else traces the target, or the twin is dying: how often we look.
constexpr int kLookMs = 10;
constexpr uint64_t kPatienceMs = 30'000;

int64_t uptime_ticks() {
  timespec now{};
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  const int64_t ticks_per_second = ::sysconf(_SC_CLK_TCK);
  return now.tv_sec * ticks_per_second + now.tv_nsec * ticks_per_second / 1'000'000'000;
}

struct Candidate {
  pid_t host_pid = 0;
  pid_t ns_pid = 0;
  bool dead = false;
  bool ours = false;  // traced by us
};

// The twin among the children: without exit signal, and of the right number, or,
// if nobody lived to tell its number, born since it was announced.
std::optional<Candidate> find_twin(const ProcDir& target, const Order& order) {
  for (const pid_t child : target.children(target.numbers("task"))) {
    const std::optional<ProcDir> proc = ProcDir::try_open(child);
    if (!proc) continue;
    const sys::Try<std::string> stat = proc->try_read("stat");
    const std::string status = proc->read_or_empty("status");
    const std::vector<int32_t> pids = status_numbers(status, "NSpid");
    if (!stat.ok() || pids.empty() || stat_exit_signal(stat.value) != 0) continue;
    if (order.twin_ns_pid ? pids.back() == order.twin_ns_pid
                          : static_cast<int64_t>(stat_start_ticks(stat.value)) >= order.announced_ticks)
      return Candidate{child, pids.back(), stat_state(stat.value) == 'Z',
                       status_number(status, "TracerPid", 0) == ::getpid()};
  }
  return std::nullopt;
}

void make_target_wait(FrozenTree& tree, pid_t twin_ns_pid) {
  TracedProcess& process = tree.root();
  TracedThread& thread = process.leader();
  const InterruptedContext context = read_interrupted_context(thread.host_tid);
  if (context.registers.cs != kUserCodeSegment64) throw NativeError("unsupported", "the target runs 32-bit code now");
  const std::string status = process.proc.read("status");
  if (status_number(status, "Seccomp", 0) != 0)
    checked_ptrace(PTRACE_SETOPTIONS, thread.host_tid, 0, kSeizeOptions | kPtraceOptionSuspendSeccomp);
  const RseqState rseq = read_rseq(thread.host_tid, process.host_pid, context.registers.rip);
  const bool in_critical_section = !rseq.critical_section.empty();
  ReturnPathFinder return_paths;
  const std::string xstate = read_xstate(thread.host_tid);
  {
    const WayHome way_home(process, parse_maps(process.proc.read("maps")), return_paths, status, context, xstate,
                           in_critical_section ? rseq.abort_ip : 0);
    const int64_t waited = run_remote_syscall(
        tree, thread, context, way_home.site(), SYS_wait4,
        {static_cast<uint64_t>(twin_ns_pid), 0, static_cast<uint64_t>(__WALL) | WNOHANG, 0, 0, 0}, Deadline::never());
    if (waited != twin_ns_pid) log_line("the target's wait for its twin gave %lld", static_cast<long long>(waited));
  }
  if (in_critical_section) put_back_critical_section(process.proc, rseq.address, rseq.critical_section_address);
}

FrozenTree stop_target(const Order& order) {
  FreezeRequest request;
  request.root_host_pid = order.host_pid;
  request.root_start_ticks = order.start_ticks;
  return FrozenTree::stop_main_thread(request);
}

// A parasite whose host has died goes on by itself, and forks when it comes to
// that. Only a main thread that is home will not.
bool may_still_fork(const FrozenTree& target) {
  return read_registers(target.root().host_pid).rip - parasite::kHomeAddress < parasite::kHomeBytes;
}

// 1. The core dies; the parasite goes on by itself and begins to fork.
// 2. We seize the main thread, which is inside clone(2).
// 3. CLONE_PTRACE now means us: the twin is born stopped, and waits for us.
void end_our_tracee(pid_t host_pid) {
  ::kill(host_pid, SIGKILL);  // it is ours until we have waited for it
  int status = 0;
  while (sys::try_waitpid(host_pid, &status, 0).ok() && WIFSTOPPED(status)) {
  }
}

// One visit; returns when the target has no twin any more.
void visit(const Order& order) {
  const Deadline patience = Deadline::in_ms(kPatienceMs);
  for (;;) {
    const std::optional<ProcDir> target = ProcDir::try_open(order.host_pid);
    const sys::Try<std::string> stat = target ? target->try_read("stat") : sys::Try<std::string>{{}, ESRCH};
    // With its parent gone the twin has another, which is told of its end.
    if (!stat.ok() || stat_start_ticks(stat.value) != order.start_ticks || stat_state(stat.value) == 'Z') return;
    std::optional<Candidate> twin = find_twin(*target, order);
    if (!twin && order.twin_ns_pid) return;
    if (twin && twin->ours && !twin->dead) {
      end_our_tracee(twin->host_pid);
      continue;
    }
    if (!twin || twin->dead) {
      try {
        // No deadline: a target whose cgroup is frozen stops when it is thawed.
        FrozenTree tree = stop_target(order);
        if (!may_still_fork(tree)) {
          if (!twin) twin = find_twin(*target, order);
          if (!twin) return;
          if (twin->dead) return make_target_wait(tree, twin->ns_pid);
        }
      } catch (const NativeError& error) {
        if (error.reason != "already_traced") throw;
      }
    }
    patience.check("waiting until the twin can be taken away");
    ::poll(nullptr, 0, kLookMs);
  }
}

// Everything up to the core's word or its death, which ends its hold on the targets.
[[noreturn]] void run_reaper(int orders, int core_pidfd) {
  std::vector<Order> known;
  bool finished = false;
  for (Order order; !finished && ::recv(orders, &order, sizeof order, 0) == sizeof order;) {
    finished = order.host_pid == 0;
    const auto same =
        std::find_if(known.begin(), known.end(), [&](const Order& other) { return other.host_pid == order.host_pid; });
    if (finished) break;
    if (same != known.end()) {
      *same = order;
    } else {
      known.push_back(order);
    }
  }
  if (!finished) wait_readable(core_pidfd, Deadline::never());
  for (size_t i = 0; i < known.size(); ++i) {
    try {
      visit(known[i]);
    } catch (const NativeError& error) {
      if (error.reason != "task_gone") log_line("reaper: %s", error.what());
    }
  }
  flush_log();
  ::_exit(0);
}

}  // namespace

TwinReaper::TwinReaper() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
    throw NativeError::from_errno("socketpair", errno);
  orders_ = UniqueFd(ends[0]);
  const UniqueFd theirs(ends[1]);
  const UniqueFd core = sys::pidfd_open(::getpid());
  prepare_self_return_frames();
  host_pid_ = ::fork();
  if (host_pid_ < 0) throw NativeError::from_errno("fork", errno);
  if (host_pid_ == 0) {
    ::setsid();  // a signal to our group is not for it
    // The control stream must end when the core does, and no file be held open. 2 is for its log.
    sys::close_all_but({STDERR_FILENO, theirs.borrow(), core.borrow()});
    run_reaper(theirs.borrow(), core.borrow());
  }
  pidfd_ = sys::pidfd_open(host_pid_);
}

TwinReaper::~TwinReaper() { finish(Deadline::in_ms(1000)); }

void TwinReaper::announce(pid_t host_pid, uint64_t start_ticks) { tell(host_pid, start_ticks, 0); }

void TwinReaper::tell(pid_t host_pid, uint64_t start_ticks, pid_t twin_ns_pid) {
  const Order order{host_pid, twin_ns_pid, start_ticks, uptime_ticks() - 1};
  if (::send(orders_.borrow(), &order, sizeof order, MSG_NOSIGNAL) != sizeof order)
    throw NativeError::from_errno("send", errno).with_what("telling the reaper of a twin");
}

bool TwinReaper::finish(const Deadline& deadline) noexcept {
  if (!orders_.valid()) return true;
  const Order order{0, 0, 0, 0};
  if (::send(orders_.borrow(), &order, sizeof order, MSG_NOSIGNAL) < 0) log_line("the reaper has gone");
  orders_.reset();
  if (!wait_readable(pidfd_.borrow(), deadline)) {
    log_line("the reaper still waits for a target that cannot be visited now");
    return false;
  }
  int status = 0;
  sys::try_waitpid(host_pid_, &status, 0);
  return true;
}

}  // namespace stasis
