// The digest of a page file: the sum of the hashes of its blocks, each seeded with
// the block's number. So blocks may come in any order, from any thread, in
// pieces that are cut anywhere: whoever writes or copies pages hashes them on the
// way, while they are in the processor's cache. It tells damage, not malice:
// docs/design/0054-page-digests.md.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace stasis {

// By its form: manifests have had sha256 digests for page files, too.
bool is_page_digest(std::string_view text);
// What is said of a file with another digest than the manifest says.
std::string not_as_written(const std::string& file_name);

constexpr uint64_t kBlockBytes = 4096;

// Of 128-bit numbers, modulo 2^128.
struct BlockSum {
  uint64_t low = 0, high = 0;

  void add(const BlockSum& other) {
    low += other.low;
    high += other.high + (low < other.low ? 1 : 0);
  }
};

class PageDigest {
 public:
  // A stretch of the file. Whole blocks in it count, once, however often they come. Several threads at once.
  void add(uint64_t offset, const unsigned char* bytes, uint64_t length_bytes);
  // Reads the blocks that have not come, with up to `workers` threads; `check` is called by the calling thread now
  // and then, and may throw. Throws "truncated" if the file is shorter. Gives lower-case hexadecimal digits. The
  // object must not be used afterwards.
  std::string finish(int file, uint64_t size_bytes, unsigned workers, const std::function<void()>& check = {});

 private:
  std::mutex mutex_;
  std::vector<bool> known_;  // by number
  BlockSum sum_;
};

}  // namespace stasis
