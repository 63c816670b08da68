// Places where a fault test can kill or fail us: "the target survives the death
// of the tracer at every step" is tested, not believed. Unarmed, a point costs
// one load and a branch.
#pragma once

#include <string>

namespace stasis {

enum class FaultKind { none, kill, fail, stop };

// The next time the named point is reached: SIGKILL ourselves, throw
// NativeError("fault"), or SIGSTOP ourselves. Not thread-safe: arm before working.
void arm_fault_point(std::string name, FaultKind kind);

extern bool fault_points_armed;
void reach_fault_point(const char* name);

inline void fault_point(const char* name) {
  if (fault_points_armed) [[unlikely]]
    reach_fault_point(name);
}

}  // namespace stasis
