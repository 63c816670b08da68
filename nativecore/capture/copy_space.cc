#include "capture/copy_space.h"

#include <sys/mman.h>

#include <algorithm>

#include "base/log_ring.h"

namespace stasis {
namespace {

constexpr uint64_t kHugePageBytes = 2 << 20;
constexpr uint64_t kMaximalBytes = 64 << 20;

}  // namespace

uint64_t status_bytes(std::string_view status, std::string_view name) {
  return static_cast<uint64_t>(status_number(status, name, 0)) << 10;  // "RssAnon:  1234 kB"
}

void CopySpace::make_before_freeze(const std::vector<ProcDir>& tree) {
  uint64_t small_bytes = 0;
  for (const ProcDir& proc : tree) {
    const uint64_t private_bytes = status_bytes(proc.read_or_empty("status"), "RssAnon");
    if (private_bytes < kWorthATwinBytes) small_bytes += private_bytes;
  }
  if (small_bytes < kHugePageBytes / 2) return;
  const uint64_t wanted = std::min(small_bytes + small_bytes / 4, kMaximalBytes);
  const uint64_t length = (wanted + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  sys::Try<sys::Mapping> memory =
      sys::try_mmap(0, length + kHugePageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  if (!memory.ok()) return log_line("no memory for copies: they get theirs one by one");
  memory_ = std::move(memory.value);
  from_bytes_ = -memory_.address() % kHugePageBytes;
  unsigned char* const from = memory_.data() + from_bytes_;
  (void)::madvise(from, length, MADV_HUGEPAGE);  // refused where there are none: then it is small ones
  for (uint64_t at = 0; at < length; at += 4096) *static_cast<volatile unsigned char*>(from + at) = 0;
}

unsigned char* CopySpace::take(uint64_t length_bytes) {
  if (!memory_.valid()) return nullptr;
  const uint64_t room = memory_.length_bytes() - kHugePageBytes;
  // What does not fit any more is lost to who comes after: it is the end, or nearly.
  const uint64_t at = taken_bytes_.fetch_add(length_bytes);
  return at <= room && length_bytes <= room - at ? memory_.data() + from_bytes_ + at : nullptr;
}

}  // namespace stasis
