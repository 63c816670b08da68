#include "base/framed_file.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

#include "base/sys.h"

namespace stasis {
namespace {

// Readers come in ascending order, and a page process in two at once: faults, and the background.
constexpr size_t kKeptFrames = 4;

struct KeptFrame {
  uint64_t file_serial = 0;  // 0: none
  uint64_t file_offset = 0;
  std::vector<unsigned char> content;
};

// Buffers that a thread uses again and again.
struct FrameBuffers {
  explicit FrameBuffers(PageCodec codec) : decompressor(codec) {}
  FrameDecompressor decompressor;
  std::string compressed;
  std::array<KeptFrame, kKeptFrames> kept;
  size_t next = 0;  // to be replaced

  const KeptFrame* find(uint64_t file_serial, uint64_t file_offset) const {
    for (const KeptFrame& frame : kept) {
      if (frame.file_serial == file_serial && frame.file_offset == file_offset) return &frame;
    }
    return nullptr;
  }
};

FrameBuffers& buffers_of_thread(PageCodec codec) {
  static thread_local std::unique_ptr<FrameBuffers> lz4, zstd;
  std::unique_ptr<FrameBuffers>& buffers = codec == PageCodec::lz4 ? lz4 : zstd;
  if (!buffers) buffers = std::make_unique<FrameBuffers>(codec);
  return *buffers;
}

}  // namespace

FramedFile::FramedFile(int file, const std::string& name, PageDigest* digest)
    : file_(file), name_(name), codec_(codec_of_file(name)), digest_(digest) {
  static std::atomic<uint64_t> serials = 0;
  serial_ = ++serials;
  try {
    frames_ = read_frame_index(file_);
  } catch (NativeError& error) {
    throw std::move(error).with_path(name_);
  }
  if (!frames_.empty()) length_bytes_ = frames_.back().content_offset + frames_.back().size.content_bytes;
}

std::optional<NativeError> FramedFile::decode(const FramePlace& place, unsigned char* to) const {
  FrameBuffers& buffers = buffers_of_thread(codec_);
  std::string& bytes = buffers.compressed;
  bytes.resize(place.size.compressed_bytes);
  const sys::Try<size_t> count = sys::try_pread_all(file_, bytes.data(), bytes.size(), place.file_offset);
  if (!count.ok()) return NativeError::from_errno("pread", count.error).with_path(name_);
  if (count.value < bytes.size())
    return NativeError("corrupt", "a compressed page file has become shorter").with_path(name_);
  if (digest_) digest_->add(place.file_offset, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  if (buffers.decompressor.decompress(bytes, to, place.size.content_bytes)) return std::nullopt;
  char what[96];
  std::snprintf(what, sizeof what, "the compressed pages at %llu of \"%s\" are damaged",
                static_cast<unsigned long long>(place.file_offset), name_.substr(0, 40).c_str());
  return NativeError("corrupt", what).with_path(name_);
}

FramedFile::Outcome FramedFile::try_read(uint64_t offset, unsigned char* to, uint64_t length_bytes) const {
  FrameBuffers& buffers = buffers_of_thread(codec_);
  auto place = std::upper_bound(frames_.begin(), frames_.end(), offset,
                                [](uint64_t value, const FramePlace& frame) { return value < frame.content_offset; });
  if (place != frames_.begin()) --place;
  uint64_t done = 0;
  for (; done < length_bytes; ++place) {
    if (place == frames_.end() || offset + done >= place->content_offset + place->size.content_bytes)
      return {done, NativeError("truncated", "a compressed page file is too short").with_path(name_)};
    const uint64_t from = offset + done - place->content_offset;
    const uint64_t count = std::min(length_bytes - done, place->size.content_bytes - from);
    const KeptFrame* known = buffers.find(serial_, place->file_offset);
    if (!known && count == place->size.content_bytes) {
      if (auto failure = decode(*place, to + done)) return {done, std::move(failure)};
    } else {
      if (!known) {
        KeptFrame& frame = buffers.kept[buffers.next++ % kKeptFrames];
        frame.file_serial = 0;
        frame.content.resize(place->size.content_bytes);
        if (auto failure = decode(*place, frame.content.data())) return {done, std::move(failure)};
        frame.file_serial = serial_;
        frame.file_offset = place->file_offset;
        known = &frame;
      }
      std::memcpy(to + done, known->content.data() + from, count);
    }
    done += count;
  }
  return {done, std::nullopt};
}

void FramedFile::read(uint64_t offset, unsigned char* to, uint64_t length_bytes) const {
  if (auto failure = try_read(offset, to, length_bytes).failure) throw std::move(*failure);
}

}  // namespace stasis
