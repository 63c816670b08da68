// The executor's own look at a plan before it touches anything: a plan that
// passes cannot make the executor read or write out of bounds, wait for a task
// that never comes, or unmap itself. What a plan asks of the kernel is judged
// by whoever compiled it (verify-plan.ts).
#pragma once

#include <cstdint>
#include <vector>

#include "executor/plan_model.h"

namespace stasis {

// Throws "bad_request" or "bad_plan", with the position if it lies in a step.
void validate_request(const ExecuteRequest& request);

// The blobs whose slot relocations a step that names `blob` needs: itself and
// what it points to, directly or not (msghdr -> iovec -> data).
std::vector<uint32_t> reachable_blobs(const Plan& plan, uint32_t blob);

// Whether some task installs a seccomp filter.
bool has_seccomp_steps(const Plan& plan);

const char* phase_name(uint32_t phase);

}  // namespace stasis
