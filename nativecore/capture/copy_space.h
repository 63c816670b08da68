// Memory of our own for what small tasks have, made before the freeze in huge
// pages: fresh memory costs a page fault for every 4 KiB that is copied into it,
// which is more than the copy.
//
// Undo: freed at the end of the scope. If we die here: nothing has been touched.
#pragma once

#include <atomic>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/sys.h"
#include "proc/proc_dir.h"

namespace stasis {

// Less private memory than this is copied inside the window as quickly as it is forked.
constexpr uint64_t kWorthATwinBytes = 1 << 20;

class CopySpace {
 public:
  // As much as the small tasks of the tree have at the moment, and some more; nothing where that is little.
  void make_before_freeze(const std::vector<ProcDir>& tree);
  // Room for a copy, for as long as this object lives; null if there is not enough left. By any thread.
  unsigned char* take(uint64_t length_bytes);

 private:
  sys::Mapping memory_;
  std::atomic<uint64_t> taken_bytes_ = 0;  // from the first boundary of huge pages on
  uint64_t from_bytes_ = 0;
};

// "RssAnon" and other sizes of /proc/PID/status, in bytes; 0 if there is no such line.
uint64_t status_bytes(std::string_view status, std::string_view name);

}  // namespace stasis
