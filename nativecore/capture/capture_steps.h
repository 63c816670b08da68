// The steps of a capture by number and name, for the tests that kill or fail
// us before each of them. `stasis-core steps capture` prints the table.
#pragma once

#include <string_view>
#include <vector>

#include "capture/capture_data.h"

namespace stasis {

struct CaptureStep {
  const char* name;
  bool hazard;       // the death of the tracer just here hurts a target that has no way home from a remote call
  bool conditional;  // not reached by every capture
  const char* meaning;
};

extern const std::vector<CaptureStep> kCaptureSteps;  // step n is element n - 1

void print_capture_steps();

// Arms the points that the environment (STASIS_FAULT_STEP=n: SIGKILL ourselves
// before step n; STASIS_FAULT_FAIL=n: fail there) and the request (stop
// ourselves with SIGSTOP) ask for.
void arm_capture_faults(const CaptureRequest& request);

}  // namespace stasis
