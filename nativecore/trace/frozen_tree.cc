#include "trace/frozen_tree.h"

#include <linux/kcmp.h>
#include <poll.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/fault_point.h"
#include "base/log_ring.h"
#include "base/native_error.h"
#include "base/sys.h"
#include "trace/ptrace_calls.h"

namespace stasis {
namespace {

// How long a thread may take to stop before we look at what holds it up.
constexpr uint64_t kStopPatienceNs = 5'000'000;
constexpr uint64_t kThawPatienceMs = 1000;

int stop_event(int status) { return status >> 16; }

bool is_group_stop(int status) {
  const int signal = WSTOPSIG(status);
  return stop_event(status) == PTRACE_EVENT_STOP &&
         (signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU);
}

// A child's stop makes SIGCHLD pending; false after `patience_ns` without one.
bool wait_for_sigchld(uint64_t patience_ns) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  const timespec patience{static_cast<time_t>(patience_ns / 1'000'000'000u),
                          static_cast<long>(patience_ns % 1'000'000'000u)};
  return ::sigtimedwait(&set, nullptr, &patience) == SIGCHLD;
}

// Whatever else a thread stops for takes back an interrupt that is pending
// (Linux: ptrace_stop() clears JOBCTL_TRAP_STOP), so it is asked for once more.
void interrupt_again(pid_t host_tid) { try_ptrace(PTRACE_INTERRUPT, host_tid, 0, 0); }

}  // namespace

void prepare_signal_waiting() {
  // SIG_IGN may be inherited through exec; the kernel sends no SIGCHLD then.
  ::signal(SIGCHLD, SIG_DFL);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  struct sigaction interrupt {};
  interrupt.sa_handler = [](int) {};  // without SA_RESTART: a wait ends with EINTR
  ::sigaction(SIGALRM, &interrupt, nullptr);
  sigemptyset(&set);
  sigaddset(&set, SIGALRM);
  ::sigprocmask(SIG_UNBLOCK, &set, nullptr);
}

std::vector<pid_t> TracedProcess::host_tids() const {
  std::vector<pid_t> tids;
  for (const TracedThread& thread : threads) tids.push_back(thread.host_tid);
  return tids;
}

FrozenTree::FrozenTree(FrozenTree&& other) noexcept
    : processes_(std::move(other.processes_)),
      process_of_pid_(std::move(other.process_of_pid_)),
      process_of_tid_(std::move(other.process_of_tid_)),
      known_(std::move(other.known_)),
      before_detaching_(std::move(other.before_detaching_)),
      active_(std::exchange(other.active_, false)) {}

FrozenTree::~FrozenTree() { thaw(); }

FrozenTree FrozenTree::freeze(const FreezeRequest& request) {
  STASIS_CONTEXT("freezing the process tree", request.root_host_pid);
  FrozenTree tree;
  tree.active_ = true;
  tree.before_detaching_ = request.before_detaching;
  if (request.known)
    for (ProcDir& proc : *request.known) tree.known_.insert_or_assign(proc.host_pid(), std::move(proc));
  tree.add_root(request);
  // One look is enough here: what comes up behind it is found below.
  for (size_t i = 0; i < tree.processes_.size(); ++i) tree.scan_process(*tree.processes_[i]);
  fault_point("all_interrupted");
  if (request.after_interrupting) request.after_interrupting();
  // Tasks that we know are stopped first; only then is a list of threads and
  // children final, because stopped tasks create nothing.
  for (;;) {
    tree.await_all_stopped(request);
    bool found_new = false;
    for (size_t i = 0; i < tree.processes_.size(); ++i) found_new |= tree.scan_process(*tree.processes_[i]);
    if (!found_new) break;
    request.deadline.check("seizing all tasks of the tree");
  }
  tree.order_processes();
  if (tree.root().zombie) throw NativeError("task_gone", "the root process has exited").with_pid(request.root_host_pid);
  return tree;
}

FrozenTree FrozenTree::stop_main_thread(const FreezeRequest& request) {
  STASIS_CONTEXT("stopping the main thread", request.root_host_pid);
  FrozenTree tree;
  tree.active_ = true;
  TracedProcess& root = tree.add_root(request);
  if (!tree.seize_thread(root, request.root_host_pid) || root.zombie)
    throw NativeError("task_gone", "stopping the main thread").with_pid(request.root_host_pid);
  tree.await_all_stopped(request);
  return tree;
}

TracedProcess& FrozenTree::add_root(const FreezeRequest& request) {
  TracedProcess* root = add_process(request.root_host_pid);
  if (!root || root->zombie) throw NativeError("task_gone", "opening the root process").with_pid(request.root_host_pid);
  if (request.root_start_ticks && stat_start_ticks(root->proc.read("stat")) != request.root_start_ticks) {
    throw NativeError("task_gone", "the root pid belongs to another process now").with_pid(request.root_host_pid);
  }
  return *root;
}

// One look at the threads and children of a process; true if any was new.
bool FrozenTree::scan_process(TracedProcess& process) {
  if (process.zombie) return false;
  bool found_new = false;
  // Threads that stand still neither end nor begin others: if there are as many as we know, it is those.
  const bool all_stopped = std::all_of(process.threads.begin(), process.threads.end(),
                                       [](const TracedThread& thread) { return thread.stopped; });
  if (!all_stopped || process.threads.size() != process.proc.thread_count()) {
    for (const pid_t host_tid : process.proc.numbers("task")) {
      if (!process_of_tid_.contains(host_tid)) found_new |= seize_thread(process, host_tid);
      if (process.zombie) return true;
    }
  }
  for (const pid_t child : process.proc.children(process.host_tids())) {
    if (find_process(child)) continue;
    found_new |= add_process(child) != nullptr;
  }
  return found_new;
}

TracedProcess* FrozenTree::add_process(pid_t host_pid) {
  std::optional<ProcDir> proc;
  sys::Try<std::string> stat{{}, ESRCH};
  if (const auto known = known_.find(host_pid); known != known_.end()) {
    proc = std::move(known->second);
    known_.erase(known);
    stat = proc->try_read("stat");  // of the process that was opened: it fails if this pid is another's now
  }
  if (!stat.ok()) {
    proc = ProcDir::try_open(host_pid);
    if (!proc) return nullptr;
    stat = proc->try_read("stat");
  }
  sys::Try<UniqueFd> pidfd = sys::try_pidfd_open(host_pid);
  if (!stat.ok() || !pidfd.ok()) return nullptr;
  auto process = std::make_unique<TracedProcess>();
  process->host_pid = host_pid;
  process->zombie = stat_state(stat.value) == 'Z';
  process->proc = std::move(*proc);
  process->pidfd = std::move(pidfd.value);
  // A leader that has exited while its threads live on looks like a zombie here.
  if (process->zombie && process->proc.numbers("task").size() > 1) {
    throw NativeError("unsupported", "the main thread has exited while other threads run on").with_pid(host_pid);
  }
  processes_.push_back(std::move(process));
  return process_of_pid_[host_pid] = processes_.back().get();
}

TracedThread& FrozenTree::add_thread(TracedProcess& process, pid_t host_tid) {
  const auto place = host_tid == process.host_pid ? process.threads.begin() : process.threads.end();
  process_of_tid_[host_tid] = &process;
  return *process.threads.insert(place, TracedThread{.host_tid = host_tid});
}

bool FrozenTree::seize_thread(TracedProcess& process, pid_t host_tid) {
  const int error = try_ptrace(PTRACE_SEIZE, host_tid, 0, kSeizeOptions);
  if (error == ESRCH) return false;
  if (error) {
    // EPERM: it has exited, somebody else traces it, or we may not.
    char name[64];
    std::snprintf(name, sizeof name, "task/%d/status", host_tid);
    const std::string status = process.proc.read_or_empty(name);
    const std::string_view state = status_field(status, "State");
    if (status.empty() || state.starts_with('X')) return false;
    if (state.starts_with('Z')) {
      if (host_tid != process.host_pid) return false;
      if (process.proc.numbers("task").size() > 1) {
        throw NativeError("unsupported", "the main thread has exited while other threads run on").with_pid(host_tid);
      }
      process.zombie = true;
      return true;
    }
    if (const int64_t tracer = status_number(status, "TracerPid", 0)) {
      // Thread siblings may have been attached by the kernel a moment ago.
      if (tracer == ::getpid() || process_of_tid_.contains(host_tid)) return false;
      throw NativeError("already_traced", "traced by pid " + std::to_string(tracer)).with_pid(host_tid);
    }
    throw NativeError::from_errno("PTRACE_SEIZE", error).with_pid(host_tid);
  }
  add_thread(process, host_tid);
  fault_point("seized_one");
  try_ptrace(PTRACE_INTERRUPT, host_tid, 0, 0);  // ESRCH: it is exiting; its wait status will say so
  return true;
}

// A thread or process that the kernel attached for us when it was created.
void FrozenTree::add_newborn(pid_t host_tid, bool vfork_child) {
  if (TracedThread* known = find_thread(host_tid)) {
    // Its own first stop came before its parent's event.
    if (vfork_child && !known->vfork_child) {
      known->vfork_child = true;
      if (known->stopped && try_ptrace(PTRACE_CONT, host_tid, 0, 0) == 0) known->stopped = false;
    }
    return;
  }
  const std::string path = "/proc/" + std::to_string(host_tid) + "/status";
  const sys::Try<std::string> status = sys::try_read_file(-1, path.c_str());
  if (!status.ok()) return;
  const pid_t host_pid = static_cast<pid_t>(status_number(status.value, "Tgid", 0));
  TracedProcess* process = find_process(host_pid);
  if (!process) process = add_process(host_pid);
  if (process && !process->zombie) add_thread(*process, host_tid).vfork_child = vfork_child;
}

void FrozenTree::remove_thread(pid_t host_tid) {
  const auto known = process_of_tid_.find(host_tid);
  if (known == process_of_tid_.end()) return;
  TracedProcess& process = *known->second;
  process_of_tid_.erase(known);
  std::erase_if(process.threads, [&](const TracedThread& thread) { return thread.host_tid == host_tid; });
  if (!process.threads.empty()) return;
  // The last thread: a zombie until its parent reaps it, or gone altogether.
  const sys::Try<std::string> stat = process.proc.try_read("stat");
  if (stat.ok() && stat_state(stat.value) == 'Z') {
    process.zombie = true;
  } else {
    process_of_pid_.erase(process.host_pid);
    std::erase_if(processes_, [&](const auto& entry) { return entry.get() == &process; });
    if (processes_.empty()) throw NativeError("task_gone", "the root process has exited");
  }
}

TracedThread* FrozenTree::find_thread(pid_t host_tid) {
  const auto known = process_of_tid_.find(host_tid);
  if (known == process_of_tid_.end()) return nullptr;
  for (TracedThread& thread : known->second->threads) {
    if (thread.host_tid == host_tid) return &thread;
  }
  return nullptr;
}

TracedProcess* FrozenTree::find_process(pid_t host_pid) {
  const auto known = process_of_pid_.find(host_pid);
  return known == process_of_pid_.end() ? nullptr : known->second;
}

const TracedThread* FrozenTree::find_unstopped() const {
  for (const auto& process : processes_) {
    for (const TracedThread& thread : process->threads) {
      if (!thread.stopped) return &thread;
    }
  }
  return nullptr;
}

namespace {

void set_wait_timer(uint64_t period_ns) {
  const timeval period{0, static_cast<suseconds_t>(period_ns / 1000)};
  const itimerval timer{period, period};
  ::setitimer(ITIMER_REAL, &timer, nullptr);
}

}  // namespace

FrozenTree::WaitScope::~WaitScope() {
  if (--tree_.wait_scopes_ > 0 || !std::exchange(tree_.timer_set_, false)) return;
  set_wait_timer(0);
}

// 0: the patience is over. ECHILD: there is no such thread.
// Preconditions: a WaitScope exists.
sys::Try<pid_t> FrozenTree::wait_a_while(pid_t host_tid, int* status) {
  sys::Try<pid_t> waited = sys::try_waitpid(host_tid, status, WNOHANG);
  if (!waited.ok() || waited.value > 0) return waited;
  // Again and again, because it may ring before the wait begins.
  if (!std::exchange(timer_set_, true)) set_wait_timer(kStopPatienceNs);
  waited = sys::try_waitpid_once(host_tid, status, 0);
  return waited.error == EINTR ? sys::Try<pid_t>{0, 0} : waited;
}

void FrozenTree::await_all_stopped(const FreezeRequest& request) {
  {
    const WaitScope scope(*this);
    // Nearly always each stops by itself, and soon.
    while (const TracedThread* const unstopped = find_unstopped()) {
      int status = 0;
      const sys::Try<pid_t> waited = wait_a_while(unstopped->host_tid, &status);
      if (!waited.ok() || waited.value == 0) break;
      on_status(waited.value, status);
    }
  }
  for (;;) {
    // One by one: asking for any of them makes the kernel look through all each time.
    const TracedThread* const unstopped = find_unstopped();
    if (!unstopped) return;
    int status = 0;
    const sys::Try<pid_t> waited = sys::try_waitpid(unstopped->host_tid, &status, WNOHANG);
    if (waited.ok() && waited.value > 0) {
      on_status(waited.value, status);
      continue;
    }
    // What comes of others: newborns before their parents' events, the ends of threads.
    const sys::Try<pid_t> other = sys::try_waitpid(-1, &status, WNOHANG);
    if (other.ok() && other.value > 0) {
      on_status(other.value, status);
      continue;
    }
    if (request.aborted && request.aborted()) throw NativeError("aborted", "waiting until all threads have stopped");
    if (request.deadline.expired()) {
      throw NativeError("deadline", "waiting until all threads have stopped").with_pid(unstopped->host_tid);
    }
    if (!wait_for_sigchld(std::min(kStopPatienceNs, request.deadline.remaining_ns()))) examine_unstopped();
  }
}

// Threads that do not stop: gone without a word (exec by a sibling), or waiting
// for a vfork child that we have stopped.
void FrozenTree::examine_unstopped() {
  std::vector<pid_t> gone;
  for (size_t i = 0; i < processes_.size(); ++i) {
    TracedProcess& process = *processes_[i];
    for (const TracedThread& thread : process.threads) {
      if (thread.stopped) continue;
      char name[64];
      std::snprintf(name, sizeof name, "task/%d/stat", thread.host_tid);
      const sys::Try<std::string> stat = process.proc.try_read(name);
      if (!stat.ok()) {
        gone.push_back(thread.host_tid);
        continue;
      }
      if (stat_state(stat.value) == 'Z' && process.threads.size() > 1 && thread.host_tid == process.host_pid) {
        throw NativeError("unsupported", "the main thread has exited while other threads run on")
            .with_pid(thread.host_tid);
      }
      for (const pid_t child : process.proc.children({thread.host_tid})) {
        const sys::Try<int> same_memory = sys::try_kcmp(thread.host_tid, child, KCMP_VM, 0, 0);
        if (same_memory.ok() && same_memory.value == 0) add_newborn(child, true);
      }
    }
  }
  for (const pid_t host_tid : gone) remove_thread(host_tid);
}

void FrozenTree::on_status(pid_t host_tid, int status) {
  if (WIFEXITED(status) || WIFSIGNALED(status)) {
    remove_thread(host_tid);
    return;
  }
  if (!WIFSTOPPED(status)) return;
  TracedThread* thread = find_thread(host_tid);
  if (!thread) {
    // A newborn's own stop, before its parent's event.
    add_newborn(host_tid, false);
    thread = find_thread(host_tid);
    if (!thread) return;
  }
  switch (stop_event(status)) {
    case PTRACE_EVENT_STOP:
      if (thread->vfork_child) {
        // Its parent cannot stop before this child has left their common memory.
        try_ptrace(PTRACE_CONT, host_tid, 0, 0);
        return;
      }
      thread->stopped = true;
      thread->group_stop_signal = is_group_stop(status) ? WSTOPSIG(status) : 0;
      return;
    case PTRACE_EVENT_FORK:
    case PTRACE_EVENT_VFORK:
    case PTRACE_EVENT_CLONE: {
      uint64_t newborn = 0;
      const bool known = try_ptrace(PTRACE_GETEVENTMSG, host_tid, 0, reinterpret_cast<uint64_t>(&newborn)) == 0;
      if (known && newborn) add_newborn(static_cast<pid_t>(newborn), stop_event(status) == PTRACE_EVENT_VFORK);
      // On to the next stop: the system call returns first.
      interrupt_again(host_tid);
      try_ptrace(PTRACE_CONT, host_tid, 0, 0);
      return;
    }
    case PTRACE_EVENT_EXEC: {
      // The thread has taken over the leader's id; its siblings are gone (execve(2)).
      TracedProcess& process = *process_of_tid_[host_tid];
      for (const pid_t other : process.host_tids()) {
        if (other != host_tid) remove_thread(other);
      }
      find_thread(host_tid)->vfork_child = false;
      interrupt_again(host_tid);
      try_ptrace(PTRACE_CONT, host_tid, 0, 0);
      return;
    }
    default:
      // Signal-delivery-stop: the signal has been taken off the queue, so it is
      // handed on; the handler's frame is set up, then the interrupt stops it.
      interrupt_again(host_tid);
      try_ptrace(PTRACE_CONT, host_tid, 0, static_cast<uint64_t>(WSTOPSIG(status)));
      return;
  }
}

void FrozenTree::order_processes() {
  std::unordered_map<pid_t, pid_t> parents;
  for (const auto& process : processes_) {
    const sys::Try<std::string> stat = process->proc.try_read("stat");
    if (stat.ok()) parents[process->host_pid] = stat_parent(stat.value);
  }
  // A zombie that its parent reaped before it was stopped itself.
  std::erase_if(processes_, [&](const auto& process) { return !parents.contains(process->host_pid); });
  std::erase_if(process_of_pid_, [&](const auto& entry) { return !parents.contains(entry.first); });
  if (processes_.empty()) throw NativeError("task_gone", "the root process has exited");
  const pid_t root_host_pid = processes_.front()->host_pid;
  const auto depth = [&](pid_t host_pid) {
    size_t steps = 0;
    while (host_pid != root_host_pid && steps <= parents.size()) {
      const auto parent = parents.find(host_pid);
      if (parent == parents.end()) break;
      host_pid = parent->second;
      ++steps;
    }
    return steps;
  };
  std::unordered_map<pid_t, size_t> depths;
  for (const auto& entry : parents) depths[entry.first] = depth(entry.first);
  std::stable_sort(processes_.begin(), processes_.end(),
                   [&](const auto& a, const auto& b) { return depths[a->host_pid] < depths[b->host_pid]; });
}

int FrozenTree::wait_for_stop(TracedThread& thread, const Deadline& deadline) {
  const WaitScope scope(*this);
  for (;;) {
    int status = 0;
    const sys::Try<pid_t> waited = wait_a_while(thread.host_tid, &status);
    if (!waited.ok()) throw NativeError::from_errno("waitpid", ESRCH).with_pid(thread.host_tid);
    if (waited.value > 0) {
      if (WIFSTOPPED(status)) return status;
      remove_thread(thread.host_tid);
      throw NativeError("task_gone", "waiting for a thread to stop").with_pid(thread.host_tid);
    }
    if (deadline.expired()) throw NativeError("deadline", "waiting for a thread to stop").with_pid(thread.host_tid);
  }
}

void FrozenTree::interrupt(const std::vector<TracedThread*>& threads, const Deadline& deadline) {
  for (TracedThread* thread : threads) {
    checked_ptrace(PTRACE_INTERRUPT, thread->host_tid, 0, 0);
  }
  const WaitScope scope(*this);
  for (TracedThread* thread : threads) {
    for (;;) {
      const int status = wait_for_stop(*thread, deadline);
      if (stop_event(status) == PTRACE_EVENT_STOP) break;
      // All signals are blocked while foreign code runs, but SIGSTOP cannot be.
      if (stop_event(status) == 0 && WSTOPSIG(status) == SIGSTOP) thread->deferred_signal = SIGSTOP;
      interrupt_again(thread->host_tid);
      checked_ptrace(PTRACE_CONT, thread->host_tid, 0, 0);
    }
    thread->stopped = true;
  }
}

void FrozenTree::thaw() noexcept {
  if (!active_) return;
  active_ = false;
  if (before_detaching_) before_detaching_();
  const Deadline patience = Deadline::in_ms(kThawPatienceMs);
  for (const auto& process : processes_) {
    for (TracedThread& thread : process->threads) {
      int signal = 0;
      if (!thread.stopped) {
        // Only after a freeze that failed half-way: a running tracee cannot be detached.
        try {
          int status = 0;
          try_ptrace(PTRACE_INTERRUPT, thread.host_tid, 0, 0);
          status = wait_for_stop(thread, patience);
          if (stop_event(status) == 0) signal = WSTOPSIG(status);
        } catch (const NativeError& error) {
          log_line("thaw: %s", error.what());
          continue;
        }
      }
      // ESRCH: killed meanwhile.
      const int error = try_ptrace(PTRACE_DETACH, thread.host_tid, 0, static_cast<uint64_t>(signal));
      if (error && error != ESRCH) log_line("thaw: cannot detach %d: errno %d", thread.host_tid, error);
      if (thread.deferred_signal) sys::try_tgkill(process->host_pid, thread.host_tid, thread.deferred_signal);
      thread.stopped = false;
    }
  }
}

void FrozenTree::kill_all(const Deadline& deadline) {
  active_ = false;
  for (const auto& process : processes_) {
    // Root first: when it is the init of its pid namespace, the kernel kills
    // the others, and none of them can react to the death of another.
    const sys::Try<bool> sent = sys::try_pidfd_send_signal(process->pidfd.borrow(), SIGKILL);
    if (!sent.ok() && sent.error != ESRCH)
      throw NativeError::from_errno("pidfd_send_signal", sent.error).with_pid(process->host_pid);
  }
  for (const auto& process : processes_) {
    for (;;) {
      // A traced task's exit is told to its tracer first; only when we have
      // taken that can its parent, or its namespace's init, go on.
      int status = 0;
      while (true) {
        const sys::Try<pid_t> waited = sys::try_waitpid(-1, &status, WNOHANG);
        if (!waited.ok() || waited.value == 0) break;
        if (WIFSTOPPED(status)) try_ptrace(PTRACE_CONT, waited.value, 0, SIGKILL);
      }
      pollfd exited{process->pidfd.borrow(), POLLIN, 0};
      const int ready = ::poll(&exited, 1, 0);
      if (ready > 0) break;
      if (deadline.expired())
        throw NativeError("deadline", "waiting for a killed process to exit").with_pid(process->host_pid);
      // SIGCHLD tells of traced tasks; a short poll covers the untraced zombie.
      wait_for_sigchld(std::min<uint64_t>(kStopPatienceNs, deadline.remaining_ns()));
    }
  }
}

}  // namespace stasis
