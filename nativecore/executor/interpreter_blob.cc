// The interpreter: what runs inside every task from its first instruction until
// release. Freestanding: no libc, no thread-local storage, no SSE, nothing
// outside the hole; it goes on when everything else has been unmapped. All
// signals are blocked while it runs.
//
// Barriers: a task arrives at the end of a phase and waits until the
// coordinator raises `stage`. The last one to arrive wakes the coordinator.
#include <asm/unistd.h>
#include <linux/sched.h>
#include <stddef.h>
#include <stdint.h>

#include "executor/hole_layout.h"

namespace stasis {
namespace {

constexpr int kFutexWait = 0;  // shared futexes: the waiters are different address spaces
constexpr int kFutexWake = 1;
constexpr int kPrctlSetParentDeathSignal = 1;
constexpr int kPrctlSetDumpable = 4;
constexpr int kSignalKill = 9;
constexpr int kSignalChild = 17;
constexpr int kUnblock = 1;
constexpr int kWaitAll = 0x40000000;  // __WALL: helpers have no exit signal
constexpr int64_t kErrnoEchild = -10;
constexpr int64_t kErrnoEintr = -4;
constexpr int64_t kErrnoEinval = -22;

inline int64_t syscall6(uint64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f) {
  int64_t result;
  register uint64_t r10 asm("r10") = d;
  register uint64_t r8 asm("r8") = e;
  register uint64_t r9 asm("r9") = f;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}

inline int64_t syscall4(uint64_t number, uint64_t a = 0, uint64_t b = 0, uint64_t c = 0, uint64_t d = 0) {
  return syscall6(number, a, b, c, d, 0, 0);
}

// clone3 whose child starts on its own stack in `stasis_task_main`. The child
// must not touch the parent's stack, not even to return: that stack is shared
// memory, and the parent is using it.
inline int64_t clone3_onto(const clone_args* args, HoleHeader* header, uint64_t task_index) {
  int64_t result;
  register HoleHeader* r12 asm("r12") = header;
  register uint64_t r13 asm("r13") = task_index;
  asm volatile(
      "syscall\n\t"
      "test %%rax, %%rax\n\t"
      "jnz 1f\n\t"
      "xor %%ebp, %%ebp\n\t"
      "mov %%r12, %%rdi\n\t"
      "mov %%r13, %%rsi\n\t"
      "call stasis_task_main\n\t"
      "ud2\n"
      "1:"
      : "=a"(result)
      : "a"(static_cast<uint64_t>(__NR_clone3)), "D"(args), "S"(sizeof(clone_args)), "r"(r12), "r"(r13)
      : "rcx", "r11", "memory");
  return result;
}

inline uint32_t load(const uint32_t& word) { return __atomic_load_n(&word, __ATOMIC_SEQ_CST); }
inline void store(uint32_t& word, uint32_t value) { __atomic_store_n(&word, value, __ATOMIC_SEQ_CST); }

inline HoleTask& task_at(HoleHeader* header, uint64_t index) {
  return reinterpret_cast<HoleTask*>(header->tasks)[index];
}
inline uint64_t& slot_at(HoleHeader* header, uint32_t slot) { return reinterpret_cast<uint64_t*>(header->slots)[slot]; }

[[noreturn]] void leave(HoleHeader* header, uint64_t index, int exit_code) {
  store(task_at(header, index).alive, 0);
  for (;;) syscall4(__NR_exit_group, static_cast<uint64_t>(exit_code));
}

void wake(uint32_t& word) { syscall4(__NR_futex, reinterpret_cast<uint64_t>(&word), kFutexWake, INT32_MAX); }

void tell_coordinator(HoleHeader* header) {
  __atomic_fetch_add(&header->events, 1, __ATOMIC_SEQ_CST);
  wake(header->events);
}

[[noreturn]] void fail(HoleHeader* header, uint64_t index, uint32_t phase, uint32_t step, int64_t result) {
  HoleError& error = header->error;
  if (__atomic_exchange_n(&error.claimed, 1, __ATOMIC_SEQ_CST) == 0) {
    error.task = static_cast<uint32_t>(index);
    error.phase = phase;
    error.step = step;
    error.result = result;
    store(error.complete, 1);
  }
  store(header->fail, 1);
  // The coordinator first: when the init of a pid namespace hears of it and leaves, the kernel kills us.
  tell_coordinator(header);
  wake(header->stage);
  __atomic_fetch_add(&header->fills, 1, __ATOMIC_SEQ_CST);
  wake(header->fills);
  leave(header, index, 1);
}

// Returns when `phase` may run.
void wait_for_stage(HoleHeader* header, uint64_t index, uint32_t phase) {
  for (;;) {
    if (load(header->fail)) leave(header, index, 1);
    const uint32_t stage = load(header->stage);
    if (stage >= phase) return;
    syscall4(__NR_futex, reinterpret_cast<uint64_t>(&header->stage), kFutexWait, stage, 0);
  }
}

// Returns when the coordinator has filled the first `count` userfaultfd ranges of this task, and registered them no
// more.
void wait_for_fill(HoleHeader* header, uint64_t index, uint64_t count) {
  for (;;) {
    if (load(header->fail)) leave(header, index, 1);
    const uint32_t seen = load(header->fills);
    if (load(task_at(header, index).filled) >= count) return;
    syscall4(__NR_futex, reinterpret_cast<uint64_t>(&header->fills), kFutexWait, seen, 0);
  }
}

void arrive(HoleHeader* header, uint32_t phase) {
  const uint32_t arrived = __atomic_add_fetch(&header->arrived[phase], 1, __ATOMIC_SEQ_CST);
  if (arrived == header->expected[phase]) tell_coordinator(header);
}

// If our creator dies before EXITKILL protects the tree, we die. In the
// creator's own pid namespace the race with its death is closed by the fail
// word, which the janitor sets: it is looked at before every step.
void set_parent_death_signal(int signal) {
  syscall4(__NR_prctl, kPrctlSetParentDeathSignal, static_cast<uint64_t>(signal));
}

void reap_helpers(HoleHeader* header, uint64_t index) {
  for (uint32_t other = 0; other < header->task_count; ++other) {
    const HoleTask& task = task_at(header, other);
    if (task.kind != TaskKind::helper || task.parent != index) continue;
    int64_t result;
    do {
      result = syscall4(__NR_wait4, static_cast<uint64_t>(static_cast<int64_t>(task.pid)), 0, kWaitAll, 0);
    } while (result == kErrnoEintr);
    if (result < 0 && result != kErrnoEchild) fail(header, index, kPhaseDescriptors, 0, result);
  }
}

int64_t create_task(HoleHeader* header, uint64_t child_index, bool thread) {
  HoleTask& child = task_at(header, child_index);
  clone_args args;
  unsigned char* bytes = reinterpret_cast<unsigned char*>(&args);
  for (size_t i = 0; i < sizeof(args); ++i) bytes[i] = 0;
  args.flags = child.clone_flags;
  // A helper is reaped by us and must not leave a SIGCHLD behind.
  args.exit_signal = (thread || child.kind == TaskKind::helper) ? 0 : kSignalChild;
  if (thread) args.flags |= CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
  args.stack = child.stack_base;
  args.stack_size = kInterpreterStackBytes;
  args.set_tid = child.set_tid;
  args.set_tid_size = child.set_tid_count;
  const int64_t result = clone3_onto(&args, header, child_index);
  if (result > 0) child.pid = static_cast<int32_t>(result);
  return result;
}

[[noreturn]] void exit_as(HoleHeader* header, uint64_t index, uint32_t phase, uint64_t wait_status) {
  const uint64_t signal = wait_status & 0x7f;
  // No barrier can see the exit itself; the coordinator waits for the state Z.
  store(task_at(header, index).alive, 0);
  set_parent_death_signal(0);
  if (signal != 0) {
    // Without a core dump, which would go to wherever core_pattern of the host says.
    syscall4(__NR_prctl, kPrctlSetDumpable, 0);
    uint64_t default_action[4] = {0, 0, 0, 0};
    syscall4(__NR_rt_sigaction, signal, reinterpret_cast<uint64_t>(default_action), 0, 8);
    uint64_t mask = 1ull << (signal - 1);
    arrive(header, phase);
    syscall4(__NR_tkill, static_cast<uint64_t>(syscall4(__NR_gettid)), signal);
    syscall4(__NR_rt_sigprocmask, kUnblock, reinterpret_cast<uint64_t>(&mask), 0, 8);
  } else {
    arrive(header, phase);
  }
  for (;;) syscall4(__NR_exit_group, (wait_status >> 8) & 0xff);
}

// Runs one step; the value is the result in the kernel's convention.
int64_t run_step(HoleHeader* header, uint64_t index, uint32_t phase, const HoleStep& step) {
  const HoleRelocation* relocations = reinterpret_cast<const HoleRelocation*>(step.relocations);
  for (uint32_t i = 0; i < step.relocation_count; ++i) {
    const uint64_t value = slot_at(header, relocations[i].slot);
    if (relocations[i].width == 4) {
      *reinterpret_cast<volatile uint32_t*>(relocations[i].address) = static_cast<uint32_t>(value);
    } else {
      *reinterpret_cast<volatile uint64_t*>(relocations[i].address) = value;
    }
  }
  uint64_t args[kMaxArgs];
  for (uint32_t i = 0; i < kMaxArgs; ++i) {
    args[i] = step.args[i];
    if (step.slot_args & (1u << i)) args[i] = slot_at(header, static_cast<uint32_t>(args[i]));
  }
  if (step.kind == StepKind::syscall) {
    return syscall6(step.syscall_number, args[0], args[1], args[2], args[3], args[4], args[5]);
  }
  if (step.kind == StepKind::clone_process) return create_task(header, args[0], false);
  if (step.kind == StepKind::clone_thread) return create_task(header, args[0], true);
  if (step.kind == StepKind::load) {
    // args[0] is the address already; args[2] the width. A descriptor is a positive int.
    if (args[2] == 4) return *reinterpret_cast<volatile int32_t*>(args[0]);
    return *reinterpret_cast<volatile int64_t*>(args[0]);
  }
  if (step.kind == StepKind::await_fill) {
    wait_for_fill(header, index, args[0]);
    return 0;
  }
  if (step.kind == StepKind::exit_now) exit_as(header, index, phase, args[0]);
  return kErrnoEinval;
}

inline bool is_acceptable(const HoleStep& step, int64_t result) {
  const bool failed = result < 0 && result >= -4095;
  if (step.has_expected ? static_cast<uint64_t>(result) == step.expected : (!failed || step.kind == StepKind::load))
    return true;
  if (!failed) return false;
  for (uint32_t i = 0; i < step.tolerated_count; ++i) {
    if (-result == step.tolerated[i]) return true;
  }
  return false;
}

}  // namespace

extern "C" [[noreturn]] void stasis_task_main(HoleHeader* header, uint64_t index) {
  HoleTask& task = task_at(header, index);
  store(task.alive, 1);
  const bool is_thread = task.kind == TaskKind::thread;
  // The child of a helper outlives it, so it is protected only once the helper
  // has gone: after DESCRIPTORS, where the helper's parent has reaped it. Until
  // then the fail word and its pidfd in the janitor are what ends it.
  bool parent_leaves = index != 0 && !is_thread && task_at(header, task.parent).kind == TaskKind::helper;
  if (!is_thread && !parent_leaves) set_parent_death_signal(kSignalKill);

  for (uint32_t phase = task.first_phase; phase <= task.last_phase; ++phase) {
    if (header->expected[phase] == 0) continue;
    wait_for_stage(header, index, phase);
    if (parent_leaves && phase > kPhaseDescriptors) {
      set_parent_death_signal(kSignalKill);
      parent_leaves = false;
    }
    if (phase == kPhaseCredentials && !is_thread) set_parent_death_signal(0);  // EXITKILL holds from here on
    const HoleStep* steps = reinterpret_cast<const HoleStep*>(task.steps[phase]);
    task.progress_phase = phase;
    for (uint32_t number = 0; number < task.step_counts[phase]; ++number) {
      if (load(header->fail)) leave(header, index, 1);
      task.progress_step = number;
      const int64_t result = run_step(header, index, phase, steps[number]);
      if (!is_acceptable(steps[number], result)) fail(header, index, phase, number, result);
      if (steps[number].out_slot != 0) slot_at(header, steps[number].out_slot) = static_cast<uint64_t>(result);
    }
    arrive(header, phase);
    if (phase == kPhaseGroups) {
      wait_for_stage(header, index, kPhaseDescriptors);
      // Helpers under helpers too, or the init of a pid namespace would inherit them as zombies.
      if (task.has_helpers) reap_helpers(header, index);
      if (task.kind == TaskKind::helper) leave(header, index, 0);
    }
  }
  // Parked. Nobody wakes us: the coordinator stops us with ptrace and puts the
  // target's registers in place of ours.
  for (;;) wait_for_stage(header, index, UINT32_MAX);
}

}  // namespace stasis

// First byte of the image. rdi: header, rsi: task index, rdx: top of its stack.
asm(".pushsection .text.entry, \"ax\"\n"
    ".globl stasis_interpreter_entry\n"
    "stasis_interpreter_entry:\n\t"
    "mov %rdx, %rsp\n\t"
    "xor %ebp, %ebp\n\t"
    "call stasis_task_main\n\t"
    "ud2\n"
    ".popsection\n");
