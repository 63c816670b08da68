// How a thread comes home from a remote system call if we die in the middle:
// a `syscall` instruction that is followed by a return, and a place that calls
// rt_sigreturn. Both are found in what the target has mapped (every C library
// and Go have them, as the restorer of signal handlers); nothing is written to
// its code.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "trace/frozen_tree.h"

namespace stasis {

struct ReturnPath {
  uint64_t syscall_instruction = 0;
  uint64_t popped_words = 0;       // between it and its `ret`
  uint64_t sigreturn_address = 0;  // loads the number and calls
};

// Remembers per file where the instructions are, so that a library is searched
// once, and before the freeze where possible.
class ReturnPathFinder {
 public:
  // Nothing if the target has no such instructions, or would not let them
  // return (a shadow stack, of which its status tells).
  std::optional<ReturnPath> find(pid_t host_pid, std::string_view status, const std::vector<Vma>& vmas);

 private:
  struct Offsets {
    std::optional<uint64_t> syscall_offset, sigreturn_offset;  // in the mapping
    uint64_t popped_words = 0;
  };
  using Key = std::tuple<uint64_t, uint64_t, uint64_t, uint64_t>;  // device, inode, offset, length
  Offsets search(pid_t host_pid, const Vma& vma);
  bool still_there(pid_t host_pid, const ReturnPath& path);
  std::map<Key, Offsets> known_;
};

}  // namespace stasis
