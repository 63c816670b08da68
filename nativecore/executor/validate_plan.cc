#include "executor/validate_plan.h"

#include <fcntl.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <sys/mman.h>
#include <sys/user.h>

#include <algorithm>
#include <iterator>
#include <optional>

#include "base/connection_lock.h"
#include "base/control_channel.h"
#include "base/native_error.h"
#include "executor/syscall_table.h"

namespace stasis {
namespace {

// Where an incremental checkpoint has left pages to; the link has been checked by TypeScript.
constexpr std::string_view kParentPrefix = "parent/";

constexpr uint64_t kLowestHoleAddress = 0x10000;  // vm.mmap_min_addr, rounded up
constexpr uint64_t kTaskSize = 0x7ffffffff000;    // x86-64, 47 bits: what fits every machine
constexpr uint64_t kMaximalHoleBytes = 8ull << 30;
constexpr size_t kMaximalTasks = 65536;
constexpr uint32_t kMaximalSlots = 4u << 20;
constexpr size_t kMaximalXstateBytes = 65536;
constexpr size_t kMinimalXstateBytes = 576;  // legacy area and header
constexpr size_t kMaximalUndoActions = 4096;
constexpr uint64_t kNamespaceFlags = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER |
                                     CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWTIME;
constexpr uint64_t kChildFlags = kNamespaceFlags | CLONE_FILES | CLONE_FS | CLONE_SYSVSEM;

struct Position {
  uint32_t phase = 0;
  uint32_t task = 0;
  uint32_t step = 0;
};

bool ranges_overlap(uint64_t first, uint64_t first_length, uint64_t second, uint64_t second_length) {
  return first < second + second_length && second < first + first_length;
}

class Validator {
 public:
  explicit Validator(const ExecuteRequest& request) : request_(request), plan_(request.plan) {}

  void run() {
    check_request();
    check_hole();
    check_blobs();
    check_externals();
    check_tasks();
    for (uint32_t index = 0; index < plan_.tasks.size(); ++index) collect(index);
    check_creation();
    for (uint32_t index = 0; index < plan_.tasks.size(); ++index) check_steps(index);
    for (const PlanTask& task : plan_.tasks) check_memory(task);
    check_connections();
  }

 private:
  [[noreturn]] static void refuse(const std::string& what) { throw NativeError("bad_plan", what); }
  [[noreturn]] void refuse_step(const Position& at, const PlanStep& step, const std::string& what) const {
    throw NativeError("bad_plan", what).with_position({at.task, at.phase, at.step, std::string(step.op), 0});
  }

  void check_request() const {
    if (request_.version != 1)
      throw NativeError("bad_request", "request version " + std::to_string(request_.version) + ", wanted 1");
    if (plan_.version != 1)
      throw NativeError("bad_request", "plan version " + std::to_string(plan_.version) + ", wanted 1");
    if (request_.undo.size() > kMaximalUndoActions) throw NativeError("bad_request", "more than 4096 undo actions");
    for (const UndoAction& action : request_.undo) {
      const uint32_t kind = static_cast<uint32_t>(action.kind);
      if (kind == 0 || kind > 4) throw NativeError("bad_request", "unknown kind of undo action");
      check_absolute(action.path, "path of an undo action");
    }
    for (const std::string& path : request_.cgroup_tasks_files) check_absolute(path, "cgroup file");
    if (!request_.start_fifo.empty()) check_absolute(request_.start_fifo, "named pipe");
    if (!request_.cgroup2_directory.empty()) check_absolute(request_.cgroup2_directory, "cgroup directory");
  }

  void check_connections() const {
    const auto refuse_call = [](const PlanSocketCall& call) {
      const auto kind = static_cast<uint32_t>(call.kind);
      return kind > static_cast<uint32_t>(PlanSocketCall::Kind::await_peer_end) ||
             (call.kind == PlanSocketCall::Kind::shutdown && (call.level < 0 || call.level > 2));
    };
    for (const PlanConnection& connection : plan_.connections) {
      if (connection.task >= plan_.tasks.size() || plan_.tasks[connection.task].kind != TaskKind::process)
        refuse("a connection belongs to a task that is no process");
      if (connection.fd < 0) refuse("a connection has no descriptor");
      if (!connection_address(connection.local, connection.peer)) refuse("a connection has no addresses");
      if (!connection.lock.empty() && !is_lock_name(connection.lock))
        refuse("a connection has a lock whose name is none");
      if (std::any_of(connection.calls.begin(), connection.calls.end(), refuse_call) ||
          std::any_of(connection.last_calls.begin(), connection.last_calls.end(), refuse_call))
        refuse("a connection has a call that no socket takes");
    }
    if (plan_.network_descriptor < -1 ||
        (plan_.network_descriptor > 0 && plan_.network_descriptor <= kImagesDescriptor))
      refuse("the network of connections is a descriptor of the core's own");
  }

  static void check_absolute(const std::string& path, const char* of_what) {
    if (path.empty() || path[0] != '/' || path.find('\0') != std::string::npos || path.size() >= 4096) {
      throw NativeError("bad_request", std::string(of_what) + " is not an absolute path").with_path(path);
    }
  }

  void check_hole() const {
    const uint64_t address = plan_.hole_address, length = plan_.hole_length_bytes;
    if (address % kPageBytes || length % kPageBytes || length == 0 || length > kMaximalHoleBytes ||
        address < kLowestHoleAddress || address > kTaskSize - length) {
      refuse("the hole is not a page-aligned range of user addresses of at most 8 GiB");
    }
  }

  bool touches_hole(uint64_t address, uint64_t length) const {
    if (length > UINT64_MAX - address) return true;
    return ranges_overlap(address, length, plan_.hole_address, plan_.hole_length_bytes);
  }

  void check_blobs() const {
    uint64_t total = 0;
    for (const PlanBlob& blob : plan_.blobs) {
      if (blob.length_bytes > plan_.hole_length_bytes || total + blob.length_bytes > plan_.hole_length_bytes) {
        refuse("the blobs are larger than the hole");
      }
      total += blob.length_bytes;
      for (const PlanRelocation& relocation : blob.relocations) {
        const uint64_t width = relocation.kind == PlanRelocation::Kind::slot32 ? 4 : 8;
        if (blob.length_bytes < width || relocation.offset > blob.length_bytes - width)
          refuse("a relocation lies outside its blob");
        if (relocation.kind == PlanRelocation::Kind::blob) {
          if (relocation.target >= plan_.blobs.size()) refuse("a relocation names a blob that is not there");
        } else if (relocation.target == 0 || relocation.target > plan_.slot_count) {
          refuse("a relocation names a slot that is not there");
        }
      }
    }
    if (request_.page_file_digests.size() > plan_.page_files.size()) refuse("more digests than page files");
    for (const std::string& path : plan_.page_files) {
      std::string_view name = path;
      while (name.starts_with(kParentPrefix)) name.remove_prefix(kParentPrefix.size());
      if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
          name.find('\0') != std::string::npos) {
        refuse("the name of a page file is not a plain file name");
      }
    }
  }

  void check_externals() {
    if (plan_.slot_count > kMaximalSlots) refuse("more than 4 million slots");
    definitions_.resize(plan_.slot_count + 1);
    for (const PlanExternal& external : plan_.externals) {
      if (external.descriptor <= kImagesDescriptor) refuse("an external descriptor is one of the core's own");
      if (::fcntl(external.descriptor, F_GETFD) < 0) {
        throw NativeError("bad_request", "external descriptor \"" + std::string(external.name) + "\" is not open")
            .with_target_fd(external.descriptor);
      }
      define(external.slot, Position{kPhasePrologue, 0, 0});
    }
  }

  void define(uint32_t slot, const Position& at) {
    if (slot == 0 || slot > plan_.slot_count) refuse("a slot number is out of range");
    if (definitions_[slot]) refuse("slot " + std::to_string(slot) + " is defined twice");
    definitions_[slot] = at;
  }

  void check_tasks() const {
    if (plan_.tasks.empty()) refuse("a plan without tasks");
    if (plan_.tasks.size() > kMaximalTasks) refuse("more than 65536 tasks");
    size_t steps = 0;
    for (uint32_t index = 0; index < plan_.tasks.size(); ++index) {
      const PlanTask& task = plan_.tasks[index];
      const std::string name = "task " + std::to_string(index);
      if (static_cast<uint32_t>(task.kind) > 3) refuse(name + " is of unknown kind");
      if (index == 0) {
        if (task.kind != TaskKind::process) refuse("the root is not a process");
        if (task.clone_flags & ~kNamespaceFlags) refuse("the root has clone flags that are not namespaces");
      } else {
        if (task.parent >= index) refuse(name + " precedes its parent");
        const TaskKind parent = plan_.tasks[task.parent].kind;
        if (parent == TaskKind::thread || parent == TaskKind::zombie)
          refuse("the parent of " + name + " cannot have children");
        if (task.kind == TaskKind::thread) {
          if (parent != TaskKind::process) refuse("the parent of " + name + " cannot have threads");
          if (task.clone_flags) refuse(name + " is a thread with clone flags");
        } else if (task.clone_flags & ~kChildFlags) {
          refuse(name + " has clone flags that a plan may not use");
        }
      }
      if (task.set_tid.size() > kMaxPidNamespaceDepth) refuse(name + " is in too many pid namespaces");
      for (const int32_t tid : task.set_tid) {
        if (tid <= 0) refuse(name + " has a pid that is not positive");
      }
      const uint32_t first = index == 0                      ? kPhaseNamespaces
                             : task.kind == TaskKind::thread ? kPhaseThreads
                                                             : kPhaseTasks;
      const uint32_t last = task.kind == TaskKind::helper   ? kPhaseGroups
                            : task.kind == TaskKind::zombie ? kPhaseThreads
                                                            : kPhaseCredentials;
      uint32_t previous = 0;
      for (const PlanPhase& phase : task.phases) {
        if (phase.phase <= previous) refuse("the phases of " + name + " are out of order");
        if (phase.phase < first || phase.phase > last ||
            (phase.phase == kPhaseFill && task.kind != TaskKind::process)) {
          refuse(name + " cannot have steps in phase " + phase_name(phase.phase));
        }
        previous = phase.phase;
        steps += phase.steps.size();
      }
      if (task.stays()) {
        if (task.release.registers.size() != sizeof(user_regs_struct)) refuse(name + " has no complete register set");
        const size_t xstate = task.release.xstate.size();
        if (xstate && (xstate < kMinimalXstateBytes || xstate > kMaximalXstateBytes))
          refuse("the extended state of " + name + " has an impossible size");
      }
    }
    if (steps > kMaximalSteps) refuse("more than 4 million steps");
    if ((!request_.uid_map.empty() || !request_.gid_map.empty()) && !(plan_.tasks[0].clone_flags & CLONE_NEWUSER)) {
      refuse("id maps without a user namespace");
    }
  }

  // Who defines which slot, who creates which task.
  void collect(uint32_t index) {
    creations_.resize(plan_.tasks.size());
    for (const PlanPhase& phase : plan_.tasks[index].phases) {
      for (uint32_t number = 0; number < phase.steps.size(); ++number) {
        const PlanStep& step = phase.steps[number];
        const Position at{phase.phase, index, number};
        if (step.out_slot != 0) {
          if (step.out_slot > plan_.slot_count) refuse_step(at, step, "a slot number is out of range");
          if (definitions_[step.out_slot])
            refuse_step(at, step, "slot " + std::to_string(step.out_slot) + " is defined twice");
          definitions_[step.out_slot] = at;
        }
        if (step.op != "clone_process" && step.op != "clone_thread") continue;
        if (step.args.size() != 1 || step.args[0].kind != PlanArg::Kind::immediate ||
            step.args[0].value >= plan_.tasks.size()) {
          refuse_step(at, step, "it does not name a task");
        }
        const uint32_t child = static_cast<uint32_t>(step.args[0].value);
        const bool thread = plan_.tasks[child].kind == TaskKind::thread;
        if (thread != (step.op == "clone_thread")) refuse_step(at, step, "the task is of the other kind");
        if (child == 0 || plan_.tasks[child].parent != index) refuse_step(at, step, "the task has another parent");
        if (creations_[child]) refuse_step(at, step, "the task is created twice");
        if (phase.phase != (thread ? kPhaseThreads : kPhaseTasks)) {
          refuse_step(at, step,
                      thread ? "threads are created in phase THREADS" : "processes are created in phase TASKS");
        }
        creations_[child] = at;
      }
    }
  }

  void check_creation() const {
    for (uint32_t index = 1; index < plan_.tasks.size(); ++index) {
      if (!creations_[index]) refuse("task " + std::to_string(index) + " is created by nobody");
    }
  }

  // Phases are ordered by barriers; inside a phase a task sees what it did
  // itself and what its ancestors did before they created it.
  bool is_defined_before(uint32_t slot, const Position& use) const {
    const std::optional<Position>& definition = definitions_[slot];
    if (!definition) return false;
    if (definition->phase != use.phase) return definition->phase < use.phase;
    Position at = use;
    while (at.task != definition->task) {
      if (at.task == 0) return false;
      at = *creations_[at.task];
      if (at.phase != use.phase) return false;
    }
    return definition->step < at.step;
  }

  void check_slot_use(const Position& at, const PlanStep& step, uint64_t slot) const {
    if (slot == 0 || slot > plan_.slot_count)
      refuse_step(at, step, "slot " + std::to_string(slot) + " is out of range");
    if (!is_defined_before(static_cast<uint32_t>(slot), at))
      refuse_step(at, step, "slot " + std::to_string(slot) + " is used before it is defined");
  }

  void check_steps(uint32_t index) const {
    const PlanTask& task = plan_.tasks[index];
    bool has_left = false;
    for (const PlanPhase& phase : task.phases) {
      for (uint32_t number = 0; number < phase.steps.size(); ++number) {
        const PlanStep& step = phase.steps[number];
        const Position at{phase.phase, index, number};
        if (has_left) refuse_step(at, step, "it comes after exit_now");
        check_step(at, step);
        if (step.op == "exit_now") {
          if (task.kind != TaskKind::zombie) refuse_step(at, step, "the task is no zombie");
          has_left = true;
        }
      }
    }
    if (task.kind == TaskKind::zombie && !has_left)
      refuse("task " + std::to_string(index) + " is a zombie that never exits");
  }

  void check_step(const Position& at, const PlanStep& step) const {
    if (step.args.size() > kMaxArgs) refuse_step(at, step, "it has more than six arguments");
    if (step.tolerated_errnos.size() > kMaxToleratedErrnos) refuse_step(at, step, "it tolerates more than six errors");
    for (const int32_t tolerated : step.tolerated_errnos) {
      if (tolerated <= 0 || tolerated > 4095) refuse_step(at, step, "a tolerated errno is out of range");
    }
    for (const PlanArg& arg : step.args) check_arg(at, step, arg);

    if (step.op == "clone_process" || step.op == "clone_thread") return;
    if (at.phase == kPhaseFill && step.op != "await_fill" && step.op != "mprotect")
      refuse_step(at, step, "while memory is filled tasks wait for it and protect it, nothing else");
    if (step.op == "await_fill") return check_await_fill(at, step);
    if (step.op == "exit_now") {
      if (step.args.size() != 1 || step.args[0].kind != PlanArg::Kind::immediate || step.args[0].value > 0xffff) {
        refuse_step(at, step, "it takes a wait status");
      }
      return;
    }
    if (step.op == "load") {
      const bool formed = step.args.size() == 3 && step.args[0].kind == PlanArg::Kind::blob &&
                          step.args[1].kind == PlanArg::Kind::immediate &&
                          step.args[2].kind == PlanArg::Kind::immediate;
      if (!formed || (step.args[2].value != 4 && step.args[2].value != 8))
        refuse_step(at, step, "it takes blob, offset, width 4 or 8");
      const uint64_t length = plan_.blobs[step.args[0].value].length_bytes;
      if (length < step.args[2].value || step.args[1].value > length - step.args[2].value)
        refuse_step(at, step, "it reads outside its blob");
      return;
    }
    const SyscallEntry* entry = find_syscall(step.op);
    if (!entry) refuse_step(at, step, "it is not a system call that a plan may name");
    if (step.args.size() < entry->min_args || step.args.size() > entry->max_args) {
      refuse_step(at, step, "it has " + std::to_string(step.args.size()) + " arguments");
    }
    check_hole_is_left_alone(at, step);
  }

  void check_await_fill(const Position& at, const PlanStep& step) const {
    if (at.phase != kPhaseFill) refuse_step(at, step, "memory is filled in phase FILL");
    // The page process fills when the tasks run.
    if (request_.lazy_pages) refuse_step(at, step, "what is restored lazily is not filled then");
    if (step.args.size() != 1 || step.args[0].kind != PlanArg::Kind::immediate ||
        step.args[0].value > plan_.tasks[at.task].uffd_ranges.size())
      refuse_step(at, step, "it takes a number of userfaultfd ranges of its task");
  }

  void check_arg(const Position& at, const PlanStep& step, const PlanArg& arg) const {
    switch (arg.kind) {
      case PlanArg::Kind::immediate: return;
      case PlanArg::Kind::slot: check_slot_use(at, step, arg.value); return;
      case PlanArg::Kind::hole_offset:
        if (arg.value > plan_.hole_length_bytes) refuse_step(at, step, "an address lies outside the hole");
        return;
      case PlanArg::Kind::blob:
      case PlanArg::Kind::blob_offset:
        if (arg.value >= plan_.blobs.size()) refuse_step(at, step, "it names a blob that is not there");
        if (arg.offset > plan_.blobs[arg.value].length_bytes) refuse_step(at, step, "an address lies outside its blob");
        if (step.op == "load") return;  // reads what a system call has left there; nothing is relocated
        for (const uint32_t blob : reachable_blobs(plan_, static_cast<uint32_t>(arg.value))) {
          for (const PlanRelocation& relocation : plan_.blobs[blob].relocations) {
            if (relocation.kind != PlanRelocation::Kind::blob) check_slot_use(at, step, relocation.target);
          }
        }
        return;
    }
  }

  // An interpreter that unmaps or overwrites itself cannot report anything.
  void check_hole_is_left_alone(const Position& at, const PlanStep& step) const {
    const auto immediate = [&step](size_t number) -> std::optional<uint64_t> {
      if (number >= step.args.size() || step.args[number].kind != PlanArg::Kind::immediate) return std::nullopt;
      return step.args[number].value;
    };
    const bool by_range = step.op == "munmap" || step.op == "mprotect" || step.op == "madvise" || step.op == "mbind" ||
                          step.op == "mseal" || step.op == "mremap" ||
                          (step.op == "mmap" && immediate(3).value_or(MAP_FIXED) & (MAP_FIXED | MAP_FIXED_NOREPLACE));
    if (by_range && immediate(0) && immediate(1) && touches_hole(*immediate(0), *immediate(1)))
      refuse_step(at, step, "it would change the hole");
    if (step.op == "mremap" && immediate(4) && immediate(2) && touches_hole(*immediate(4), *immediate(2))) {
      refuse_step(at, step, "it would change the hole");
    }
  }

  void check_memory(const PlanTask& task) const {
    std::vector<PlanRange> ranges = task.uffd_ranges;
    std::sort(ranges.begin(), ranges.end(),
              [](const PlanRange& left, const PlanRange& right) { return left.address < right.address; });
    if (task.kind != TaskKind::process && (!task.fills.empty() || !task.uffd_ranges.empty()))
      refuse("only processes have memory to fill");
    if (!task.uffd_ranges.empty() &&
        (task.uffd_slot == 0 || task.uffd_slot > plan_.slot_count || !definitions_[task.uffd_slot] ||
         definitions_[task.uffd_slot]->phase > kPhaseMemory)) {
      refuse("a task with userfaultfd ranges opens no userfaultfd by the end of phase MEMORY");
    }
    for (const PlanRange& range : task.uffd_ranges) {
      if (range.address % kPageBytes || range.length_bytes % kPageBytes || range.length_bytes == 0 ||
          touches_hole(range.address, range.length_bytes)) {
        refuse("a userfaultfd range is not page-aligned or touches the hole");
      }
    }
    for (size_t number = 1; number < ranges.size(); ++number) {
      if (ranges[number].address - ranges[number - 1].address < ranges[number - 1].length_bytes)
        refuse("userfaultfd ranges of a task overlap");
    }
    for (const PlanFill& fill : task.fills) {
      if (static_cast<uint32_t>(fill.method) > 1) refuse("a fill has an unknown method");
      if (fill.page_file >= plan_.page_files.size()) refuse("a fill names a page file that is not there");
      if (fill.page_count == 0 || fill.page_count > kTaskSize / kPageBytes || fill.address % kPageBytes ||
          fill.address > kTaskSize || touches_hole(fill.address, fill.page_count * kPageBytes) ||
          fill.file_offset_bytes > INT64_MAX - fill.page_count * kPageBytes) {
        refuse("a fill has an impossible range");
      }
      if (fill.method == PlanFill::Method::uffd && !lies_in_a_range(ranges, fill))
        refuse("a fill lies outside the userfaultfd ranges of its task");
      // Nobody would answer the fault that the write would cause.
      if (fill.method == PlanFill::Method::mem && overlaps_a_range(ranges, fill))
        refuse("a fill through /proc/PID/mem touches a userfaultfd range");
    }
  }

  static bool lies_in_a_range(const std::vector<PlanRange>& sorted, const PlanFill& fill) {
    const auto after =
        std::upper_bound(sorted.begin(), sorted.end(), fill.address,
                         [](uint64_t address, const PlanRange& range) { return address < range.address; });
    if (after == sorted.begin()) return false;
    const PlanRange& range = *std::prev(after);
    return fill.address + fill.page_count * kPageBytes <= range.address + range.length_bytes;
  }

  static bool overlaps_a_range(const std::vector<PlanRange>& sorted, const PlanFill& fill) {
    const auto after = std::lower_bound(sorted.begin(), sorted.end(), fill.address + fill.page_count * kPageBytes,
                                        [](const PlanRange& range, uint64_t end) { return range.address < end; });
    if (after == sorted.begin()) return false;
    const PlanRange& last_before_end = *std::prev(after);
    return last_before_end.address + last_before_end.length_bytes > fill.address;
  }

  const ExecuteRequest& request_;
  const Plan& plan_;
  std::vector<std::optional<Position>> definitions_;
  std::vector<std::optional<Position>> creations_;
};

}  // namespace

void validate_request(const ExecuteRequest& request) { Validator(request).run(); }

std::vector<uint32_t> reachable_blobs(const Plan& plan, uint32_t blob) {
  std::vector<uint32_t> reachable{blob};
  for (size_t next = 0; next < reachable.size(); ++next) {
    for (const PlanRelocation& relocation : plan.blobs[reachable[next]].relocations) {
      if (relocation.kind != PlanRelocation::Kind::blob) continue;
      bool known = false;
      for (const uint32_t seen : reachable) known = known || seen == relocation.target;
      if (!known) reachable.push_back(relocation.target);
    }
  }
  return reachable;
}

bool has_seccomp_steps(const Plan& plan) {
  for (const PlanTask& task : plan.tasks) {
    for (const PlanPhase& phase : task.phases) {
      for (const PlanStep& step : phase.steps) {
        if (step.op == "seccomp") return true;
        if (step.op == "prctl" && step.args[0].kind == PlanArg::Kind::immediate && step.args[0].value == PR_SET_SECCOMP)
          return true;
      }
    }
  }
  return false;
}

const char* phase_name(uint32_t phase) {
  static constexpr const char* kNames[] = {"PROLOGUE", "NAMESPACES", "FILES",   "TASKS",       "GROUPS", "DESCRIPTORS",
                                           "MEMORY",   "FILL",       "THREADS", "CREDENTIALS", "PARKED"};
  return phase < std::size(kNames) ? kNames[phase] : "UNKNOWN";
}

}  // namespace stasis
