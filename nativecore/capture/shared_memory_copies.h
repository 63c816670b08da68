// Memory of our own for copies of shared memory, made before the freeze: fresh
// memory costs the kernel, and a virtual machine's host, more than the copying
// (measured for 1 GiB: 1500 ms into fresh memory of a machine that had never
// used it, 170 ms into memory that is there).
//
// Undo: freed at the end of the scope. If we die here: nothing has been touched.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/sys.h"
#include "capture/capture_context.h"

namespace stasis {

// Names of objects of the kernel's own tmpfs, as /proc tells them.
constexpr const char* kSegmentName = "/SYSV";
constexpr const char* kMemfdName = "/memfd:";

// Device number of that tmpfs.
uint64_t find_shared_memory_device();
// The inode number of a segment is its id, and another object's may be the same.
using SharedObjectKey = std::pair<bool, uint64_t>;  // is a segment, inode
SharedObjectKey shared_object_key(const std::string& name, uint64_t inode);

// How much may be held in copies.
uint64_t room_for_copies(const CaptureRequest& request);
// Whether that is enough for so much, beside what else is copied and what twins may come to need.
bool has_room_for_copies(const CaptureContext& context, uint64_t length_bytes, uint64_t other_bytes = 0);

class SharedMemoryCopies {
 public:
  // Looks at what the tree shares at the moment; when it is frozen it may be more.
  void make_before_freeze(const CaptureRequest& request, const std::vector<ProcDir>& tree);
  // Room for a copy, for as long as this object lives; null if there is not enough left.
  unsigned char* take(uint64_t length_bytes);

 private:
  sys::Mapping memory_;
  uint64_t taken_bytes_ = 0;
};

}  // namespace stasis
