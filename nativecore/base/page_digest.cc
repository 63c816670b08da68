#include "base/page_digest.h"

#include <algorithm>
#include <cstdio>
#include <memory>

#include "base/block_hash.h"
#include "base/native_error.h"
#include "base/parallel.h"
#include "base/sys.h"

namespace stasis {
namespace {

constexpr uint64_t kBlocksAtOnce = 128;  // of finish(): half a megabyte

}  // namespace

bool is_page_digest(std::string_view text) { return text.size() == 32; }

std::string not_as_written(const std::string& file_name) {
  return "\"" + file_name + "\" is not the file that was written: its digest differs from the manifest's";
}

void PageDigest::add(uint64_t offset, const unsigned char* bytes, uint64_t length_bytes) {
  const uint64_t first = (offset + kBlockBytes - 1) / kBlockBytes;
  const uint64_t end = (offset + length_bytes) / kBlockBytes;
  if (first >= end) return;
  std::vector<bool> known(end - first);
  {
    const std::lock_guard lock(mutex_);
    if (known_.size() < end) known_.resize(end);
    for (uint64_t number = first; number < end; ++number) {
      known[number - first] = known_[number];
      known_[number] = true;
    }
  }
  BlockSum sum;
  for (uint64_t number = first; number < end; ++number) {
    if (!known[number - first]) sum.add(hash_of_block(number, bytes + (number * kBlockBytes - offset), kBlockBytes));
  }
  const std::lock_guard lock(mutex_);
  sum_.add(sum);
}

std::string PageDigest::finish(int file, uint64_t size_bytes, unsigned workers, const std::function<void()>& check) {
  struct Stretch {
    uint64_t first, end;
  };
  const uint64_t end = (size_bytes + kBlockBytes - 1) / kBlockBytes;
  known_.resize(end);
  std::vector<Stretch> missing;
  for (uint64_t number = 0; number < end; ++number) {
    if (known_[number]) continue;
    if (missing.empty() || missing.back().end != number || number - missing.back().first == kBlocksAtOnce)
      missing.push_back({number, number});
    ++missing.back().end;
  }
  parallel_for(missing.size(), workers, [&](size_t index, bool in_caller) {
    static thread_local const auto buffer = std::make_unique<unsigned char[]>(kBlocksAtOnce * kBlockBytes);
    if (in_caller && check) check();
    const uint64_t offset = missing[index].first * kBlockBytes;
    const uint64_t length = std::min(missing[index].end * kBlockBytes, size_bytes) - offset;
    const sys::Try<size_t> count = sys::try_pread_all(file, buffer.get(), length, offset);
    if (!count.ok()) throw NativeError::from_errno("pread", count.error);
    if (count.value < length) throw NativeError("truncated", "a page file has become shorter");
    BlockSum sum;
    for (uint64_t at = 0; at < length; at += kBlockBytes)
      sum.add(hash_of_block((offset + at) / kBlockBytes, buffer.get() + at, std::min(kBlockBytes, length - at)));
    const std::lock_guard lock(mutex_);
    sum_.add(sum);
  });
  char text[33];
  std::snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(sum_.high),
                static_cast<unsigned long long>(sum_.low));
  return text;
}

}  // namespace stasis
