// What the coordinator (hosted C++) and the interpreter (freestanding, inside
// the tasks) share: the layout of the hole. Everything in it is at the same
// address in every task, because the hole is one MAP_SHARED mapping that
// children inherit; so it holds plain addresses and is never moved.
//
//   +-------------+ Hole.address
//   | HoleHeader  | fail word, barriers, error record
//   +-------------+ page boundary
//   | interpreter | the flat image; its first byte is the entry
//   +-------------+ page boundary
//   | tasks, steps, relocations, set_tid arrays, slots
//   +-------------+
//   | blobs       |
//   +-------------+ page boundary
//   | stacks      | kInterpreterStackBytes per task
//   +-------------+ Hole.address + Hole.length_bytes
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/page.h"

namespace stasis {

constexpr uint32_t kHoleVersion = 1;

// Phases of plan.proto, in order of execution; 0 is our own preparation (closing
// what the root inherits from the core).
constexpr uint32_t kPhasePrologue = 0;
constexpr uint32_t kPhaseNamespaces = 1;
constexpr uint32_t kPhaseFiles = 2;
constexpr uint32_t kPhaseTasks = 3;
constexpr uint32_t kPhaseGroups = 4;
constexpr uint32_t kPhaseDescriptors = 5;
constexpr uint32_t kPhaseMemory = 6;
constexpr uint32_t kPhaseFill = 7;  // while the coordinator fills: tasks follow it with await_fill
constexpr uint32_t kPhaseThreads = 8;
constexpr uint32_t kPhaseCredentials = 9;
constexpr uint32_t kPhaseParked = 10;  // past the last phase
constexpr uint32_t kPhaseCount = 10;

// The deepest chain of frames of the interpreter is below 512 bytes; no signal
// handler ever runs on these stacks because all signals are blocked. Four share
// a page, and so a fault.
constexpr uint64_t kInterpreterStackBytes = 1024;

constexpr uint32_t kMaxArgs = 6;
constexpr uint32_t kMaxToleratedErrnos = 6;
constexpr uint32_t kMaxPidNamespaceDepth = 32;  // MAX_PID_NS_LEVEL

enum class StepKind : uint16_t {
  syscall = 0,
  clone_process = 1,
  clone_thread = 2,
  load = 3,
  exit_now = 4,
  await_fill = 5
};

struct HoleStep {
  StepKind kind;
  uint16_t syscall_number;
  uint8_t has_expected;
  uint8_t slot_args;  // bit i: args[i] is the number of a slot, not a value
  uint8_t tolerated_count;
  uint8_t arg_count;
  uint32_t out_slot;
  uint32_t relocation_count;
  uint64_t relocations;  // address of HoleRelocation[]: slot values this step's blobs need
  uint64_t expected;
  uint64_t args[kMaxArgs];
  uint16_t tolerated[kMaxToleratedErrnos];
  uint32_t reserved;
};
static_assert(sizeof(HoleStep) == 96 && offsetof(HoleStep, args) == 32 && offsetof(HoleStep, tolerated) == 80);

struct HoleRelocation {
  uint64_t address;  // in a blob
  uint32_t slot;
  uint32_t width;  // 4 or 8 bytes
};
static_assert(sizeof(HoleRelocation) == 16);

enum class TaskKind : uint32_t { process = 0, thread = 1, helper = 2, zombie = 3 };

struct HoleTask {
  TaskKind kind;
  uint32_t parent;
  int32_t pid;           // as its creator sees it; set by the creator
  uint32_t alive;        // 1 from the task's first instruction until it leaves the interpreter
  uint32_t first_phase;  // where its step list begins
  uint32_t last_phase;   // the last barrier it takes part in; kPhaseCredentials for those that stay
  uint32_t has_helpers;  // 1: reap helper children after GROUPS
  uint32_t set_tid_count;
  uint64_t set_tid;  // address of int32_t[]
  uint64_t clone_flags;
  uint64_t stack_base;
  uint32_t progress_phase;  // for whoever looks after a hang
  uint32_t progress_step;
  uint32_t filled;  // atomic: so many of its userfaultfd ranges are, from the first on
  uint32_t reserved;
  uint64_t steps[kPhaseCount];  // addresses of HoleStep[]
  uint32_t step_counts[kPhaseCount];
};
static_assert(sizeof(HoleTask) == 192 && offsetof(HoleTask, steps) == 72);

// Written once, by whoever fails first.
struct HoleError {
  uint32_t claimed;   // atomic: 0, then 1
  uint32_t complete;  // atomic: the rest is there
  uint32_t task;
  uint32_t phase;
  uint32_t step;
  uint32_t reserved;
  int64_t result;
};
static_assert(sizeof(HoleError) == 32);

struct HoleHeader {
  uint32_t version;
  uint32_t task_count;
  uint32_t slot_count;
  uint32_t fail;                   // atomic: 1 = every task leaves at its next step or wait
  uint32_t stage;                  // futex: the phase that tasks may run; kPhaseParked = nothing more to do
  uint32_t events;                 // futex: counts what the coordinator waits for (a barrier complete, a failure)
  uint32_t arrived[kPhaseCount];   // atomic
  uint32_t expected[kPhaseCount];  // how many tasks take part; 0 = nobody has anything to do, pass
  uint32_t fills;                  // futex: counts what await_fill waits for (a range filled, a failure)
  uint32_t reserved;
  uint64_t tasks;  // address of HoleTask[]
  uint64_t slots;  // address of uint64_t[slot_count + 1]; slot 0 is never used
  HoleError error;
};
static_assert(sizeof(HoleHeader) == 160 && offsetof(HoleHeader, tasks) == 112);

}  // namespace stasis
