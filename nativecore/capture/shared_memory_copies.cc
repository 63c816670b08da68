#include "capture/shared_memory_copies.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <utility>
#include <vector>

#include "base/log_ring.h"
#include "base/native_error.h"
#include "base/parallel.h"
#include "capture/path_facts.h"
#include "proc/proc_dir.h"

namespace stasis {
namespace {

// As much is held in memory of ours in any case; more only if the host has room for it.
constexpr uint64_t kAlwaysCopiedBytes = uint64_t{512} << 20;
// Less than this is there in no time.
constexpr uint64_t kWorthPreparingBytes = 4 << 20;
constexpr uint64_t kChunkBytes = 2 << 20;  // a huge page

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

uint64_t estimate_shared_bytes(const std::vector<ProcDir>& tree) {
  const uint64_t device = find_shared_memory_device();
  std::set<SharedObjectKey> known;
  uint64_t total = 0;
  for (const ProcDir& proc : tree) {
    for (const Vma& vma : parse_maps(proc.read_or_empty("maps"))) {
      if (vma.device != device || vma.name.empty()) continue;
      if (!known.insert(shared_object_key(vma.name, vma.inode)).second) continue;
      total += stat_of(proc.borrow(), map_files_name(vma.start, vma.end).c_str()).blocks * 512;
    }
  }
  return total;
}

}  // namespace

uint64_t find_shared_memory_device() {
  const sys::Try<int64_t> probe = sys::try_syscall(SYS_memfd_create, reinterpret_cast<uint64_t>("stasis"), MFD_CLOEXEC);
  if (!probe.ok()) throw NativeError::from_errno("memfd_create", probe.error);
  const UniqueFd file(static_cast<int>(probe.value));
  const sys::Try<struct statx> stat = sys::try_statx(file.borrow(), "", AT_EMPTY_PATH);
  if (!stat.ok()) throw NativeError::from_errno("statx", stat.error);
  return to_captured(stat.value).device;
}

SharedObjectKey shared_object_key(const std::string& name, uint64_t inode) {
  return {name.starts_with(kSegmentName), inode};
}

uint64_t room_for_copies(const CaptureRequest& request) {
  return std::max(kAlwaysCopiedBytes, request.copy_on_write_bytes);
}

bool has_room_for_copies(const CaptureContext& context, uint64_t length_bytes, uint64_t other_bytes) {
  for (const CapturedTask& task : context.data.tasks) other_bytes += task.twin ? task.twin_wish.memory_bytes : 0;
  const uint64_t room = room_for_copies(context.request);
  return length_bytes <= room - std::min(room, other_bytes);
}

void SharedMemoryCopies::make_before_freeze(const CaptureRequest& request, const std::vector<ProcDir>& tree) {
  if (!request.write_pages || request.pre_dump) return;
  const uint64_t estimate = estimate_shared_bytes(tree);
  if (estimate < kWorthPreparingBytes) return;
  const uint64_t wanted = (estimate + estimate / 16) / kChunkBytes * kChunkBytes + kChunkBytes;
  if (wanted > room_for_copies(request)) return;  // written inside the window
  sys::Try<sys::Mapping> memory =
      sys::try_mmap(0, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  if (!memory.ok()) return;  // then it is made when it is needed
  memory_ = std::move(memory.value);
  (void)::madvise(memory_.data(), wanted, MADV_HUGEPAGE);  // fewer faults, where the kernel has them
  parallel_for(wanted / kChunkBytes, kMaximalWorkers, [&](size_t chunk, bool) {
    // Kernels before 5.14 lack it: touched when it is written.
    (void)::madvise(memory_.data() + chunk * kChunkBytes, kChunkBytes, MADV_POPULATE_WRITE);
  });
  log_line("%llu bytes are ready for copies of shared memory", static_cast<unsigned long long>(wanted));
}

unsigned char* SharedMemoryCopies::take(uint64_t length_bytes) {
  if (!memory_.valid() || length_bytes > memory_.length_bytes() - taken_bytes_) return nullptr;
  unsigned char* const place = memory_.data() + taken_bytes_;
  taken_bytes_ += length_bytes;
  return place;
}

}  // namespace stasis
