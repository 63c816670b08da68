#include "executor/execute_steps.h"

#include <cstdio>
#include <cstdlib>

#include "base/fault_point.h"

namespace stasis {
namespace {

void arm(int number, FaultKind kind) {
  if (number < 1) return;
  const size_t at = static_cast<size_t>(number) - 1;
  if (at < kExecuteSteps.size()) {
    arm_fault_point(kExecuteSteps[at], kind);
  } else if (at - kExecuteSteps.size() < kKeepingSteps.size()) {
    arm_fault_point(kKeepingSteps[at - kExecuteSteps.size()], kind);
  } else if (at - kExecuteSteps.size() - kKeepingSteps.size() < kConnectionSteps.size()) {
    arm_fault_point(kConnectionSteps[at - kExecuteSteps.size() - kKeepingSteps.size()], kind);
  }
}

void arm_from_environment(const char* name, FaultKind kind) {
  if (const char* text = std::getenv(name)) arm(std::atoi(text), kind);
}

}  // namespace

// In the order in which execute_plan() reaches them. Before the first of them
// nothing exists but the janitor.
const std::vector<const char*> kExecuteSteps = {
    "open_cgroups",   "load_hole",     "unregister_rseq", "clone_root",       "watch_root",    "write_id_maps",
    "run_namespaces", "run_files",     "run_tasks",       "locate_processes", "run_groups",    "run_descriptors",
    "run_memory",     "fill_memory",   "run_threads",     "locate_threads",   "seize_threads", "run_credentials",
    "send_parked",    "await_release", "stop_threads",    "unmap_hole",       "set_registers", "detach_first",
    "detach_last",    "commit",
};

const std::vector<const char*> kKeepingSteps = {"make_door", "hand_over", "await_start", "committed"};

const std::vector<const char*> kConnectionSteps = {"try_connections", "make_connections", "unlock_connections",
                                                   "finish_connections"};

void arm_execute_faults(const std::vector<int32_t>& stop_before_step) {
  for (const int32_t number : stop_before_step) arm(number, FaultKind::stop);
  arm_from_environment("STASIS_FAULT_STEP", FaultKind::kill);
  arm_from_environment("STASIS_FAULT_FAIL", FaultKind::fail);
}

int print_execute_steps() {
  for (size_t i = 0; i < kExecuteSteps.size(); ++i) std::printf("%zu %s\n", i + 1, kExecuteSteps[i]);
  for (size_t i = 0; i < kKeepingSteps.size(); ++i)
    std::printf("%zu %s keeping\n", kExecuteSteps.size() + i + 1, kKeepingSteps[i]);
  for (size_t i = 0; i < kConnectionSteps.size(); ++i)
    std::printf("%zu %s connections\n", kExecuteSteps.size() + kKeepingSteps.size() + i + 1, kConnectionSteps[i]);
  return 0;
}

}  // namespace stasis
