// NativeError and timings as messages of schema/control.proto.
#pragma once

#include <string>
#include <vector>

#include "base/native_error.h"
#include "base/timing.h"

namespace stasis {

// An encoded control.proto Failure.
std::string encode_failure(const NativeError& error, const std::vector<std::string>& log = {});

// An encoded message whose only field, `field`, is `repeated Timing`: Thawed, Killed, Released, ...
std::string encode_timings(const std::vector<TimedPhase>& phases, uint32_t field = 1);

}  // namespace stasis
