// One system call in a stopped thread, from a `syscall` instruction that is
// already mapped there: the target's code is never written to.
//
// Undo: the thread's registers and signal mask are put back before the call returns or throws.
// If we die here: with a CallSite that has a way home, the thread finishes the
// system call and goes on, by itself, where it was interrupted. Without one
// (no C library mapped, a shadow stack, no room on the stack) it would run on
// with foreign registers between the first SETREGS and the last; these points
// are marked `hazard` in capture/capture_steps.cc.
#pragma once

#include <sys/types.h>
#include <sys/user.h>

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/deadline.h"
#include "trace/frozen_tree.h"

namespace stasis {

// The address of a `syscall` instruction in the target's vdso; throws
// "unsupported" if it has none.
uint64_t find_syscall_instruction(const TracedProcess& process, const std::vector<Vma>& vmas);

// What must be put back for a thread to go on as if nothing had happened.
struct InterruptedContext {
  user_regs_struct registers{};
  uint64_t signal_mask = 0;
};
InterruptedContext read_interrupted_context(pid_t host_tid);
// The mask first: with the registers first, a signal that waits behind our mask
// would meet the right instruction with the wrong mask if we died in between.
void restore_interrupted_context(pid_t host_tid, const InterruptedContext& context);

constexpr uint64_t kAllSignals = ~uint64_t{0};

struct CallSite {
  uint64_t syscall_instruction = 0;
  // Where a frame waits from which rt_sigreturn restores the thread; 0: there
  // is none, and the thread's own stack pointer stays.
  uint64_t stack_pointer = 0;
};

// One call in one thread; several threads make theirs at the same time.
struct RemoteCall {
  TracedThread* thread = nullptr;
  const InterruptedContext* context = nullptr;  // what to leave the thread with
  CallSite site;
  uint64_t number = 0;
  std::array<uint64_t, 6> arguments{};
  int64_t result = 0;  // a value, or a negative errno
};

// Preconditions: the threads are in ptrace stop, in 64-bit code, and no two are the same.
// Postconditions: they are in a ptrace stop again, with their contexts, also
// when it throws (but for those that have died).
void run_remote_syscalls(FrozenTree& tree, const std::vector<RemoteCall*>& calls, const Deadline& deadline);

// The call's result: a value, or a negative errno.
// Preconditions: the thread is in ptrace stop, in 64-bit code; `context` is what to leave it with.
// Postconditions: it is in a ptrace stop again, with `context`.
int64_t run_remote_syscall(FrozenTree& tree, TracedThread& thread, const InterruptedContext& context,
                           const CallSite& site, uint64_t number, const std::array<uint64_t, 6>& arguments,
                           const Deadline& deadline);

}  // namespace stasis
