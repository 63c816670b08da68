// A compressed page file: its pages appear in a range of our own memory when they
// are asked for, and leave it when every one has been used.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "base/page_codec.h"
#include "base/page_digest.h"
#include "base/sys.h"

namespace stasis {

class CompressedPages {
 public:
  // Reads the index. Throws "corrupt" for one that is not to be believed. `file` is
  // borrowed; `digest`, if there is one, gets the frames that are decoded.
  CompressedPages(int file, std::string name, PageDigest* digest = nullptr);

  uint64_t length_bytes() const { return length_bytes_; }
  // The place of all pages; what is there, after hold().
  const unsigned char* data() const { return memory_.data(); }

  // Several threads at once. Between the two the bytes of the range are there.
  // Throws "corrupt" if a frame cannot be decoded or its checksum differs.
  void hold(uint64_t offset, uint64_t length_bytes);
  void release(uint64_t offset, uint64_t length_bytes) noexcept;

 private:
  enum class State : uint8_t { absent, busy, present };
  struct Frame {
    FramePlace place;
    uint32_t holders = 0;
    uint32_t used_bytes = 0;
    State state = State::absent;
  };
  Frame* first_frame(uint64_t offset);
  void decode(const Frame& frame);

  int file_;
  PageDigest* digest_;
  std::string name_;
  PageCodec codec_;
  std::vector<Frame> frames_;
  uint64_t length_bytes_ = 0;
  sys::Mapping memory_;
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace stasis
