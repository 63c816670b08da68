// A compressed page file, read as if it were the plain one: what is asked for is
// decoded into the reader's buffer. Nothing is mapped: memory that comes and goes
// with each frame costs a fault for each page.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/native_error.h"
#include "base/page_codec.h"
#include "base/page_digest.h"

namespace stasis {

class FramedFile {
 public:
  // Reads the index. Throws "corrupt" for one that is not to be believed. `file` is borrowed, `name` tells the codec;
  // `digest`, if there is one, gets the frames that are read.
  FramedFile(int file, const std::string& name, PageDigest* digest = nullptr);

  // Of the content.
  uint64_t length_bytes() const { return length_bytes_; }

  struct Outcome {
    uint64_t done_bytes = 0;
    std::optional<NativeError> failure;  // why they are not all
  };
  // Several threads at once. A frame of which a part was asked for is kept for a while by the thread that decoded it.
  Outcome try_read(uint64_t offset, unsigned char* to, uint64_t length_bytes) const;
  // Throws "corrupt" if a frame cannot be decoded, "truncated" beyond the end.
  void read(uint64_t offset, unsigned char* to, uint64_t length_bytes) const;

 private:
  std::optional<NativeError> decode(const FramePlace& place, unsigned char* to) const;

  int file_;
  uint64_t serial_;  // no other file of this process has it, ever
  std::string name_;
  PageCodec codec_;
  PageDigest* digest_;
  std::vector<FramePlace> frames_;
  uint64_t length_bytes_ = 0;
};

}  // namespace stasis
