// The processes and threads that the interpreter creates, as the host sees
// them: pids, pidfds, and the means to end them all.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "base/deadline.h"
#include "base/unique_fd.h"
#include "executor/hole.h"
#include "executor/plan_model.h"

namespace stasis {

class RestoredTree {
 public:
  RestoredTree(const Plan& plan, const Hole& hole);
  RestoredTree(const RestoredTree&) = delete;
  ~RestoredTree();  // kills what is there, unless released

  // Creates the root; it starts in the interpreter at once. Preconditions: all
  // signals are blocked, this thread has no rseq registered.
  // A sibling's parent is ours: it may be waited for by others while we live on as its tracer.
  void clone_root(const std::string& cgroup2_directory, bool sibling);

  // Finds host pids; afterwards every process has a pidfd. After phase TASKS,
  // before helpers leave: parents are still what the plan says.
  void locate_processes();
  void locate_threads();

  pid_t host_pid(uint32_t task) const { return tasks_[task].host_pid; }
  int pidfd(uint32_t task) const { return tasks_[task].pidfd.borrow(); }
  size_t size() const { return tasks_.size(); }
  uint64_t root_start_ticks() const;

  // Throws "task_gone" if one that has to stay has gone.
  void check_alive() const;
  // Waits for the exit of those of kind ZOMBIE that leave in `phase`. They
  // arrive at the barrier just before: without this their SIGCHLD could come
  // after the step with which the parent takes it out of its queue.
  void await_zombies(uint32_t phase, const Deadline& deadline) const;

  // SIGKILL to everything, and waits until it has gone.
  void kill_all() noexcept;
  // From here on the tree is nobody's but its own.
  void let_go() { released_ = true; }

 private:
  struct Located {
    pid_t host_pid = 0;
    UniqueFd pidfd;  // processes only
  };
  const Plan& plan_;
  const Hole& hole_;
  std::vector<Located> tasks_;
  bool released_ = false;
};

}  // namespace stasis
