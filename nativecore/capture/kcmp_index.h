// Finds equal kernel objects with few kcmp(2) calls: the kernel gives them an
// order (obfuscated pointers), so they are kept sorted and searched.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace stasis {

class KcmpIndex {
 public:
  explicit KcmpIndex(int type) : type_(type) {}
  // The `value` of an equal object that was added before; nothing if this one
  // is the first and has been added with `value`.
  std::optional<uint32_t> find_or_add(pid_t host_pid, uint64_t argument, uint32_t value);

 private:
  struct Entry {
    pid_t host_pid;
    uint64_t argument;
    uint32_t value;
  };
  int type_;
  std::vector<Entry> sorted_;
};

}  // namespace stasis
