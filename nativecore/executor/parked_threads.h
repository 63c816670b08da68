// Every thread of the restored tree, from the moment we become its tracer to
// the moment it runs on with the target's registers.
//
// All functions are called from the thread that called seize().
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "executor/hole.h"
#include "executor/plan_model.h"
#include "executor/restored_tree.h"

namespace stasis {

class ParkedThreads {
 public:
  ParkedThreads(const Plan& plan, const Hole& hole, const RestoredTree& tree) : plan_(plan), hole_(hole), tree_(tree) {}

  // Without stopping them. From here on they die with us (PTRACE_O_EXITKILL),
  // and their seccomp filters sleep (PTRACE_O_SUSPEND_SECCOMP): the
  // interpreter's futex calls, and our munmap, are none of the filter's business.
  void seize();

  // --- release, in this order

  void stop();
  // One munmap per address space, from a `syscall` instruction of the target's vdso.
  void unmap_hole();
  void set_registers();
  // Undo: none; who has been detached runs. If we die here: we have not told
  // the janitor that we are done, and it kills the tree.
  void detach();

 private:
  uint64_t find_syscall_instruction(uint32_t task) const;
  void await_event_stop(uint32_t task);
  int await_stop(uint32_t task) const;

  const Plan& plan_;
  const Hole& hole_;
  const RestoredTree& tree_;
  std::vector<uint32_t> tasks_;           // indices of those that stay
  std::vector<uint32_t> processes_;       // of them, the leaders
  std::vector<uint32_t> deferred_stops_;  // got SIGSTOP from somebody while we held them
};

}  // namespace stasis
