// The size of a page of memory: x86-64 has one. For freestanding code, too.
#pragma once

#include <stdint.h>

namespace stasis {

constexpr uint64_t kPageBytes = 4096;

}  // namespace stasis
