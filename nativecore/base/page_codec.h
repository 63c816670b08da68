// Compression of page data: standard frames, each decodable alone, and the index
// that finds them (the seekable format of zstd's contrib/, for both codecs: a
// frame of its own that decoders skip). A file is frames, then the index.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace stasis {

enum class PageCodec { none, lz4, zstd };

// "lz4", "zstd"; none for everything else.
PageCodec codec_of_name(std::string_view name);
// ".lz4", ".zst"; "" for none. Appended to the name of a page file.
const char* suffix_of(PageCodec codec);
// By the suffix of a file's name.
PageCodec codec_of_file(std::string_view file_name);

// Of one frame. Small, because a page that is asked for alone costs its whole frame.
constexpr uint64_t kFrameBytes = 256 << 10;
// No reader takes larger ones.
constexpr uint64_t kMaximalFrameBytes = 1 << 20;

struct FrameSize {
  uint32_t compressed_bytes = 0;
  uint32_t content_bytes = 0;
};

// For one thread.
class FrameCompressor {
 public:
  FrameCompressor(PageCodec codec, int level);
  ~FrameCompressor();
  FrameCompressor(const FrameCompressor&) = delete;
  FrameCompressor& operator=(const FrameCompressor&) = delete;
  // A frame with a checksum; valid until the next call. At most kFrameBytes of content.
  std::string_view compress(const unsigned char* bytes, uint64_t length_bytes);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// For one thread.
class FrameDecompressor {
 public:
  explicit FrameDecompressor(PageCodec codec);
  ~FrameDecompressor();
  FrameDecompressor(const FrameDecompressor&) = delete;
  FrameDecompressor& operator=(const FrameDecompressor&) = delete;
  // False: `frame` is not one frame of exactly that content, or its checksum differs.
  // Nothing is written outside of `to`.
  bool decompress(std::string_view frame, unsigned char* to, uint64_t length_bytes);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string encode_frame_index(const std::vector<FrameSize>& frames);

// Where a frame is, and what it stands for.
struct FramePlace {
  uint64_t file_offset = 0;
  uint64_t content_offset = 0;
  FrameSize size;
};

// Reads the index at the end of an open file, bounded before anything is
// allocated. Throws "corrupt" for one that does not describe the file.
std::vector<FramePlace> read_frame_index(int file);

}  // namespace stasis
