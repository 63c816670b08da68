#include "executor/hole.h"

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <limits>
#include <vector>

#include "executor/syscall_table.h"
#include "executor/validate_plan.h"

extern "C" const unsigned char interpreter_blob_start[];
extern "C" const unsigned char interpreter_blob_end[];

namespace stasis {
namespace {

uint64_t round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

// Hands out the hole from its start; first without writing, to learn the size.
class Arena {
 public:
  explicit Arena(uint64_t address) : next_(address) {}
  uint64_t take(uint64_t length_bytes, uint64_t alignment = 16) {
    next_ = round_up(next_, alignment);
    const uint64_t address = next_;
    next_ += length_bytes;
    return address;
  }
  uint64_t next() const { return next_; }

 private:
  uint64_t next_;
};

struct Layout {
  uint64_t interpreter = 0;
  uint64_t tasks = 0;
  uint64_t slots = 0;
  uint64_t writer_itself = 0;
  uint64_t set_tids = 0;
  uint64_t steps = 0;
  uint64_t relocations = 0;
  std::vector<uint64_t> blobs;
  uint64_t stacks = 0;
  uint64_t end = 0;
};

// The relocations of a step: slot values in the blobs that its arguments reach.
template <typename Visit>
void visit_slot_relocations(const Plan& plan, const PlanStep& step, Visit visit) {
  if (step.op == "load") return;  // reads its blob, and must see what a system call left there
  for (const PlanArg& arg : step.args) {
    if (arg.kind != PlanArg::Kind::blob && arg.kind != PlanArg::Kind::blob_offset) continue;
    for (const uint32_t blob : reachable_blobs(plan, static_cast<uint32_t>(arg.value))) {
      for (const PlanRelocation& relocation : plan.blobs[blob].relocations) {
        if (relocation.kind != PlanRelocation::Kind::blob) visit(blob, relocation);
      }
    }
  }
}

// The root drops what it has inherited from the core before its first step:
// the control socket and the log, held open, would keep callers waiting.
std::vector<std::pair<uint32_t, uint32_t>> descriptor_gaps(const Plan& plan) {
  std::vector<uint32_t> kept;
  for (const PlanExternal& external : plan.externals) kept.push_back(static_cast<uint32_t>(external.descriptor));
  std::sort(kept.begin(), kept.end());
  std::vector<std::pair<uint32_t, uint32_t>> gaps;
  uint32_t first = 0;
  for (const uint32_t descriptor : kept) {
    if (descriptor > first) gaps.push_back({first, descriptor - 1});
    first = std::max(first, descriptor + 1);
  }
  gaps.push_back({first, UINT_MAX});
  return gaps;
}

// Cgroup v1. "0" in `tasks` moves the writer, alone: for that the kernel need not keep processes from forking, which
// costs whoever writes a pid a grace period of RCU (2 to 16 ms). The root is its only thread.
constexpr char kWriterItself[] = "0";

std::vector<HoleStep> prologue_steps(const Plan& plan, const std::vector<UniqueFd>& cgroup_files,
                                     uint64_t writer_itself) {
  std::vector<HoleStep> steps;
  const auto add = [&steps](long number, uint64_t first, uint64_t second, uint64_t third) {
    HoleStep step{};
    step.kind = StepKind::syscall;
    step.syscall_number = static_cast<uint16_t>(number);
    step.arg_count = 3;
    step.args[0] = first;
    step.args[1] = second;
    step.args[2] = third;
    steps.push_back(step);
  };
  for (const UniqueFd& file : cgroup_files) add(SYS_write, static_cast<uint64_t>(file.borrow()), writer_itself, 1);
  for (const auto& [first, last] : descriptor_gaps(plan)) add(SYS_close_range, first, last, 0);
  return steps;
}

size_t interpreter_bytes() { return static_cast<size_t>(interpreter_blob_end - interpreter_blob_start); }

Layout lay_out(const Plan& plan, uint64_t hole_address, size_t prologue_step_count) {
  size_t steps = prologue_step_count, relocations = 0, set_tids = 0;
  for (const PlanTask& task : plan.tasks) {
    set_tids += task.set_tid.size();
    for (const PlanPhase& phase : task.phases) {
      steps += phase.steps.size();
      for (const PlanStep& step : phase.steps)
        visit_slot_relocations(plan, step, [&relocations](uint32_t, const PlanRelocation&) { ++relocations; });
    }
  }
  Layout layout;
  Arena arena(hole_address);
  arena.take(sizeof(HoleHeader));
  layout.interpreter = arena.take(interpreter_bytes(), kPageBytes);
  layout.tasks = arena.take(sizeof(HoleTask) * plan.tasks.size(), kPageBytes);
  layout.slots = arena.take(8 * (static_cast<uint64_t>(plan.slot_count) + 1));
  layout.writer_itself = arena.take(sizeof kWriterItself);
  layout.set_tids = arena.take(4 * set_tids);
  layout.steps = arena.take(sizeof(HoleStep) * steps);
  layout.relocations = arena.take(sizeof(HoleRelocation) * relocations);
  layout.blobs.reserve(plan.blobs.size());
  // 16: some system calls want their structures aligned.
  for (const PlanBlob& blob : plan.blobs) layout.blobs.push_back(arena.take(blob.length_bytes, 16));
  layout.stacks = arena.take(kInterpreterStackBytes * plan.tasks.size(), kPageBytes);
  layout.end = arena.next();
  return layout;
}

HoleStep compile_step(const PlanStep& step, const Layout& layout, uint64_t hole_address) {
  HoleStep compiled{};
  if (step.op == "clone_process") {
    compiled.kind = StepKind::clone_process;
  } else if (step.op == "clone_thread") {
    compiled.kind = StepKind::clone_thread;
  } else if (step.op == "load") {
    compiled.kind = StepKind::load;
  } else if (step.op == "exit_now") {
    compiled.kind = StepKind::exit_now;
  } else if (step.op == "await_fill") {
    compiled.kind = StepKind::await_fill;
  } else {
    const SyscallEntry* entry = find_syscall(step.op);
    STASIS_ASSERT(entry != nullptr);
    compiled.kind = StepKind::syscall;
    compiled.syscall_number = entry->number;
  }
  compiled.arg_count = static_cast<uint8_t>(step.args.size());
  for (size_t i = 0; i < step.args.size(); ++i) {
    const PlanArg& arg = step.args[i];
    switch (arg.kind) {
      case PlanArg::Kind::immediate: compiled.args[i] = arg.value; break;
      case PlanArg::Kind::blob:
      case PlanArg::Kind::blob_offset: compiled.args[i] = layout.blobs[arg.value] + arg.offset; break;
      case PlanArg::Kind::hole_offset: compiled.args[i] = hole_address + arg.value; break;
      case PlanArg::Kind::slot:
        compiled.args[i] = arg.value;
        compiled.slot_args |= static_cast<uint8_t>(1u << i);
        break;
    }
  }
  if (compiled.kind == StepKind::load) compiled.args[0] += compiled.args[1];
  compiled.out_slot = step.out_slot;
  compiled.has_expected = step.has_expected;
  compiled.expected = step.expected;
  compiled.tolerated_count = static_cast<uint8_t>(step.tolerated_errnos.size());
  for (size_t i = 0; i < step.tolerated_errnos.size(); ++i)
    compiled.tolerated[i] = static_cast<uint16_t>(step.tolerated_errnos[i]);
  return compiled;
}

void futex(uint32_t* word, int operation, uint32_t value, const timespec* timeout) {
  sys::try_syscall(SYS_futex, reinterpret_cast<uint64_t>(word), static_cast<uint64_t>(operation), value,
                   reinterpret_cast<uint64_t>(timeout));
}

}  // namespace

Hole Hole::reserve(const Plan& plan) {
  // NOREPLACE: where something of ours lies already, that is an error.
  return Hole(sys::mmap(plan.hole_address, plan.hole_length_bytes, PROT_READ | PROT_WRITE | PROT_EXEC,
                        MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE));
}

void Hole::load(const Plan& plan, const std::vector<UniqueFd>& cgroup_files) {
  const Layout layout = lay_out(plan, address(), cgroup_files.size() + descriptor_gaps(plan).size());
  if (layout.end - address() > length_bytes()) {
    throw NativeError("hole_too_small", "the hole has " + std::to_string(length_bytes()) + " bytes, the plan needs " +
                                            std::to_string(round_up(layout.end - address(), kPageBytes)));
  }
  std::memcpy(reinterpret_cast<void*>(layout.interpreter), interpreter_blob_start, interpreter_bytes());
  entry_ = layout.interpreter;
  std::memcpy(reinterpret_cast<void*>(layout.writer_itself), kWriterItself, sizeof kWriterItself);

  HoleHeader& head = header();
  head.version = kHoleVersion;
  head.task_count = static_cast<uint32_t>(plan.tasks.size());
  head.slot_count = plan.slot_count;
  head.tasks = layout.tasks;
  head.slots = layout.slots;

  uint64_t* slots = reinterpret_cast<uint64_t*>(layout.slots);
  for (const PlanExternal& external : plan.externals) slots[external.slot] = static_cast<uint64_t>(external.descriptor);

  for (size_t i = 0; i < plan.blobs.size(); ++i) {
    const PlanBlob& blob = plan.blobs[i];
    std::memcpy(reinterpret_cast<void*>(layout.blobs[i]), blob.data.data(), blob.data.size());
    for (const PlanRelocation& relocation : blob.relocations) {
      if (relocation.kind != PlanRelocation::Kind::blob) continue;
      std::memcpy(reinterpret_cast<void*>(layout.blobs[i] + relocation.offset), &layout.blobs[relocation.target], 8);
    }
  }

  HoleStep* next_step = reinterpret_cast<HoleStep*>(layout.steps);
  HoleRelocation* next_relocation = reinterpret_cast<HoleRelocation*>(layout.relocations);
  int32_t* next_tid = reinterpret_cast<int32_t*>(layout.set_tids);
  for (uint32_t index = 0; index < plan.tasks.size(); ++index) {
    const PlanTask& planned = plan.tasks[index];
    HoleTask& loaded = task(index);
    loaded.kind = planned.kind;
    loaded.parent = planned.parent;
    loaded.clone_flags = planned.clone_flags;
    loaded.set_tid = planned.set_tid.empty() ? 0 : reinterpret_cast<uint64_t>(next_tid);  // clone3 wants null for none
    loaded.set_tid_count = static_cast<uint32_t>(planned.set_tid.size());
    next_tid = std::copy(planned.set_tid.begin(), planned.set_tid.end(), next_tid);
    loaded.stack_base = layout.stacks + kInterpreterStackBytes * index;
    loaded.first_phase = index == 0 ? kPhasePrologue : planned.kind == TaskKind::thread ? kPhaseThreads : kPhaseTasks;
    loaded.last_phase = planned.kind == TaskKind::helper ? kPhaseGroups : kPhaseCredentials;
    if (planned.kind == TaskKind::helper) task(planned.parent).has_helpers = 1;

    if (index == 0) {
      loaded.steps[kPhasePrologue] = reinterpret_cast<uint64_t>(next_step);
      const std::vector<HoleStep> prologue = prologue_steps(plan, cgroup_files, layout.writer_itself);
      loaded.step_counts[kPhasePrologue] = static_cast<uint32_t>(prologue.size());
      next_step = std::copy(prologue.begin(), prologue.end(), next_step);
    }
    for (const PlanPhase& phase : planned.phases) {
      loaded.steps[phase.phase] = reinterpret_cast<uint64_t>(next_step);
      loaded.step_counts[phase.phase] = static_cast<uint32_t>(phase.steps.size());
      for (const PlanStep& step : phase.steps) {
        if (step.op == "exit_now") loaded.last_phase = phase.phase;
        HoleStep compiled = compile_step(step, layout, address());
        compiled.relocations = reinterpret_cast<uint64_t>(next_relocation);
        visit_slot_relocations(plan, step, [&](uint32_t blob, const PlanRelocation& relocation) {
          *next_relocation++ = {layout.blobs[blob] + relocation.offset, relocation.target,
                                relocation.kind == PlanRelocation::Kind::slot32 ? 4u : 8u};
          ++compiled.relocation_count;
        });
        *next_step++ = compiled;
      }
    }
  }

  // A phase is a barrier if some task has steps in it. TASKS always is, because
  // who takes part in what follows has to exist, and CREDENTIALS, because the
  // parent death signal is cleared there.
  bool has_helpers = false;
  bool has_steps[kPhaseCount] = {};
  has_steps[kPhasePrologue] = has_steps[kPhaseTasks] = has_steps[kPhaseCredentials] = true;
  for (uint32_t index = 0; index < plan.tasks.size(); ++index) {
    has_helpers = has_helpers || task(index).kind == TaskKind::helper;
    for (uint32_t phase = 0; phase < kPhaseCount; ++phase)
      has_steps[phase] = has_steps[phase] || task(index).step_counts[phase] != 0;
  }
  if (has_helpers) has_steps[kPhaseGroups] = has_steps[kPhaseDescriptors] = true;  // they leave between, and are reaped
  for (uint32_t phase = 0; phase < kPhaseCount; ++phase) {
    if (!has_steps[phase]) continue;
    for (uint32_t index = 0; index < plan.tasks.size(); ++index) {
      if (task(index).first_phase <= phase && phase <= task(index).last_phase) ++head.expected[phase];
    }
  }
  STASIS_ASSERT(reinterpret_cast<uint64_t>(next_step) <= layout.relocations);
}

bool Hole::is_complete(uint32_t phase) const {
  return __atomic_load_n(&header().arrived[phase], __ATOMIC_SEQ_CST) == header().expected[phase];
}

void Hole::open_stage(uint32_t phase) const {
  __atomic_store_n(&header().stage, phase, __ATOMIC_SEQ_CST);
  futex(&header().stage, FUTEX_WAKE, INT_MAX, nullptr);
}

void Hole::tell_filled(uint32_t task_index, uint32_t count) const {
  __atomic_store_n(&task(task_index).filled, count, __ATOMIC_SEQ_CST);
  __atomic_fetch_add(&header().fills, 1, __ATOMIC_SEQ_CST);
  futex(&header().fills, FUTEX_WAKE, INT_MAX, nullptr);
}

uint32_t Hole::events() const { return __atomic_load_n(&header().events, __ATOMIC_SEQ_CST); }

void Hole::wait_for_events(uint32_t seen, uint64_t timeout_ns) const {
  const timespec timeout{static_cast<time_t>(timeout_ns / 1'000'000'000u),
                         static_cast<long>(timeout_ns % 1'000'000'000u)};
  futex(&header().events, FUTEX_WAIT, seen, &timeout);
}

bool Hole::has_failed() const { return __atomic_load_n(&header().fail, __ATOMIC_SEQ_CST) != 0; }

void Hole::fail_all() const {
  __atomic_store_n(&header().fail, 1, __ATOMIC_SEQ_CST);
  futex(&header().stage, FUTEX_WAKE, INT_MAX, nullptr);
  __atomic_fetch_add(&header().fills, 1, __ATOMIC_SEQ_CST);
  futex(&header().fills, FUTEX_WAKE, INT_MAX, nullptr);
}

std::optional<HoleError> Hole::error() const {
  if (__atomic_load_n(&header().error.complete, __ATOMIC_SEQ_CST) == 0) return std::nullopt;
  return header().error;
}

NativeError describe_step_failure(const Plan& plan, const HoleError& error) {
  std::string op = "close_range";
  const std::string where =
      std::string("running step ") + std::to_string(error.step) + " of phase " + phase_name(error.phase);
  if (error.task < plan.tasks.size()) {
    for (const PlanPhase& phase : plan.tasks[error.task].phases) {
      if (phase.phase == error.phase && error.step < phase.steps.size()) op = phase.steps[error.step].op;
    }
  }
  const int error_number = error.result < 0 && error.result >= -4095 ? static_cast<int>(-error.result) : 0;
  NativeError failure =
      error_number ? NativeError::from_errno(op.c_str(), error_number) : NativeError("unexpected_result");
  failure.call = op;
  return std::move(failure).with_what(where).with_position({error.task, error.phase, error.step, op, error.result});
}

}  // namespace stasis
