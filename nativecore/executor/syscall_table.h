// The system calls that a plan may name. A plan is data from outside; what it
// cannot name it cannot do to the host.
#pragma once

#include <cstdint>
#include <string_view>

namespace stasis {

struct SyscallEntry {
  std::string_view name;
  uint16_t number;
  uint8_t min_args;  // a plan that gives fewer is refused; the rest of the six are zeroes
  uint8_t max_args;
};

// nullptr if the name is not on the list.
const SyscallEntry* find_syscall(std::string_view name);

}  // namespace stasis
