// FrozenTree: every task of a process tree in ptrace stop, from the first
// seize to the last detach. Leaving its scope, for whatever reason, thaws.
//
// Undo: thaw(), which the destructor calls. kill_all() is the other way out.
// If we die here: the kernel detaches every tracee (ptrace(2), "if the tracer
// dies, all tracees are automatically detached"), and each runs on where it
// stopped, interrupted system calls included. No cgroup freezer is used for
// freezing, because a frozen cgroup stays frozen when we die.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "base/deadline.h"
#include "base/unique_fd.h"
#include "proc/proc_dir.h"

namespace stasis {

struct TracedThread {
  pid_t host_tid = 0;
  bool stopped = false;       // in PTRACE_EVENT_STOP: registers can be read
  int group_stop_signal = 0;  // SIGSTOP, ...: the process was stopped by job control
  bool vfork_child = false;   // runs on until its exec, because its parent cannot stop before
  int deferred_signal = 0;    // a SIGSTOP that came while foreign code ran in the thread; sent again after detaching
};

struct TracedProcess {
  pid_t host_pid = 0;
  bool zombie = false;  // exited, not reaped by its parent: nothing to trace
  ProcDir proc;
  UniqueFd pidfd;
  std::vector<TracedThread> threads;  // leader first; empty for a zombie

  TracedThread& leader() { return threads.front(); }
  std::vector<pid_t> host_tids() const;
};

struct FreezeRequest {
  pid_t root_host_pid = 0;
  std::vector<ProcDir>* known = nullptr;  // of the tree before the freeze; taken from here where still true
  uint64_t root_start_ticks = 0;          // 0: not checked
  Deadline deadline = Deadline::never();
  std::function<void()> after_interrupting;  // e.g. thaw a cgroup that was found frozen
  std::function<void()> before_detaching;    // and freeze it again; must not throw
  std::function<bool()> aborted;             // asked while waiting
};

class FrozenTree {
 public:
  // Postconditions: every thread of every descendant of the root is in ptrace
  // stop, and no task of the tree can appear or vanish but by SIGKILL.
  static FrozenTree freeze(const FreezeRequest& request);

  // The main thread of one process alone, for a short visit: the others run on.
  // Throws "already_traced" while somebody else traces it.
  static FrozenTree stop_main_thread(const FreezeRequest& request);

  FrozenTree(FrozenTree&& other) noexcept;
  FrozenTree& operator=(FrozenTree&&) = delete;
  ~FrozenTree();

  // Root first, every parent before its children.
  const std::vector<std::unique_ptr<TracedProcess>>& processes() const { return processes_; }
  TracedProcess& root() const { return *processes_.front(); }

  // Detaches everything; what cannot be detached is left to our exit.
  void thaw() noexcept;

  // SIGKILL to all, init of a pid namespace first; waits until all have exited.
  void kill_all(const Deadline& deadline);

  // --- for code that runs inside a thread of the tree (remote_syscall, parasite)

  // While one exists, stops are awaited one by one, in the kernel: whoever stops
  // meanwhile does not wake us. A timer sees to deadlines (SIGALRM, whose handler
  // does nothing); it is set when something has to be waited for.
  class WaitScope {
   public:
    explicit WaitScope(FrozenTree& tree) : tree_(tree) { ++tree_.wait_scopes_; }
    WaitScope(const WaitScope&) = delete;
    WaitScope& operator=(const WaitScope&) = delete;
    ~WaitScope();

   private:
    FrozenTree& tree_;
  };

  // Waits for the next ptrace stop of this thread and returns its wait status.
  // Throws "task_gone" if it exits instead.
  int wait_for_stop(TracedThread& thread, const Deadline& deadline);
  // PTRACE_INTERRUPT and wait until the thread is in PTRACE_EVENT_STOP; a stop
  // signal that came meanwhile is deferred.
  void interrupt(const std::vector<TracedThread*>& threads, const Deadline& deadline);

 private:
  FrozenTree() = default;
  TracedProcess& add_root(const FreezeRequest& request);
  bool scan_process(TracedProcess& process);
  TracedProcess* add_process(pid_t host_pid);
  bool seize_thread(TracedProcess& process, pid_t host_tid);
  void add_newborn(pid_t host_tid, bool vfork_child);
  TracedThread& add_thread(TracedProcess& process, pid_t host_tid);
  void remove_thread(pid_t host_tid);
  void await_all_stopped(const FreezeRequest& request);
  void examine_unstopped();
  void on_status(pid_t host_tid, int status);
  void order_processes();
  TracedThread* find_thread(pid_t host_tid);
  TracedProcess* find_process(pid_t host_pid);
  const TracedThread* find_unstopped() const;
  sys::Try<pid_t> wait_a_while(pid_t host_tid, int* status);

  std::vector<std::unique_ptr<TracedProcess>> processes_;
  std::unordered_map<pid_t, TracedProcess*> process_of_pid_;
  std::unordered_map<pid_t, TracedProcess*> process_of_tid_;
  std::unordered_map<pid_t, ProcDir> known_;  // processes that have not been found yet
  std::function<void()> before_detaching_;
  bool active_ = false;
  int wait_scopes_ = 0;
  bool timer_set_ = false;
};

// SIGCHLD is how ptrace stops are awaited where it is not known whose comes next:
// blocked, and taken with sigtimedwait(2). SIGALRM ends a wait for one of them.
// Call before starting threads, in the main thread, which is who may trace:
// the kernel gives it the signals of timers.
void prepare_signal_waiting();

}  // namespace stasis
