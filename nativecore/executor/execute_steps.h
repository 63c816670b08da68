// The coordinator's steps, each a fault point (base/fault_point.h) of that name:
// tests kill or fail us before every one of them.
// STASIS_FAULT_STEP=n: SIGKILL to ourselves before step n, counted from 1.
// STASIS_FAULT_FAIL=n: step n fails.
#pragma once

#include <cstdint>
#include <vector>

namespace stasis {

extern const std::vector<const char*> kExecuteSteps;
// Only of a restore that is kept (start_fifo); their numbers go on after those of kExecuteSteps.
extern const std::vector<const char*> kKeepingSteps;
// Only of a plan with TCP connections; numbered after those.
extern const std::vector<const char*> kConnectionSteps;

// From the environment and from ExecuteRequest.stop_before_step.
void arm_execute_faults(const std::vector<int32_t>& stop_before_step);

// `stasis-core steps execute`: lines of number and name.
int print_execute_steps();

}  // namespace stasis
