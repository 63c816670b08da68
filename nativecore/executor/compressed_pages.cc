#include "executor/compressed_pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <utility>

#include "base/native_error.h"

namespace stasis {
namespace {

FrameDecompressor& decompressor_of_thread(PageCodec codec) {
  if (codec == PageCodec::lz4) {
    static thread_local FrameDecompressor lz4(PageCodec::lz4);
    return lz4;
  }
  static thread_local FrameDecompressor zstd(PageCodec::zstd);
  return zstd;
}

}  // namespace

CompressedPages::CompressedPages(int file, std::string name, PageDigest* digest)
    : file_(file), digest_(digest), name_(std::move(name)), codec_(codec_of_file(name_)) {
  try {
    for (const FramePlace& place : read_frame_index(file_)) {
      frames_.push_back({place, 0, 0, State::absent});
      length_bytes_ = place.content_offset + place.size.content_bytes;
    }
  } catch (NativeError& error) {
    throw std::move(error).with_path(name_);
  }
  if (length_bytes_ == 0) return;
  // Address space, not memory: that comes with the frames.
  memory_ = sys::mmap(0, length_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
}

CompressedPages::Frame* CompressedPages::first_frame(uint64_t offset) {
  const auto after = std::upper_bound(frames_.begin(), frames_.end(), offset, [](uint64_t value, const Frame& frame) {
    return value < frame.place.content_offset;
  });
  return &*std::prev(after);
}

void CompressedPages::hold(uint64_t offset, uint64_t length_bytes) {
  const Frame* const end = frames_.data() + frames_.size();
  for (Frame* frame = first_frame(offset); frame < end && frame->place.content_offset < offset + length_bytes;
       ++frame) {
    std::unique_lock lock(mutex_);
    ++frame->holders;
    changed_.wait(lock, [&] { return frame->state != State::busy; });
    if (frame->state == State::present) continue;
    frame->state = State::busy;
    lock.unlock();
    try {
      decode(*frame);
    } catch (...) {
      lock.lock();
      frame->state = State::absent;
      changed_.notify_all();
      throw;
    }
    lock.lock();
    frame->state = State::present;
    changed_.notify_all();
  }
}

void CompressedPages::release(uint64_t offset, uint64_t length_bytes) noexcept {
  const Frame* const end = frames_.data() + frames_.size();
  for (Frame* frame = first_frame(offset); frame < end && frame->place.content_offset < offset + length_bytes;
       ++frame) {
    const uint64_t start = frame->place.content_offset;
    const uint64_t frame_end = start + frame->place.size.content_bytes;
    const std::lock_guard lock(mutex_);
    --frame->holders;
    frame->used_bytes += static_cast<uint32_t>(std::min(frame_end, offset + length_bytes) - std::max(start, offset));
    // Asked for once more, it is decoded once more.
    if (frame->holders > 0 || frame->used_bytes < frame->place.size.content_bytes) continue;
    if (::madvise(memory_.data() + start, frame->place.size.content_bytes, MADV_DONTNEED) < 0) continue;
    frame->used_bytes = 0;
    frame->state = State::absent;
  }
}

void CompressedPages::decode(const Frame& frame) {
  const FramePlace& place = frame.place;
  std::string bytes(place.size.compressed_bytes, '\0');
  const sys::Try<size_t> count = sys::try_pread_all(file_, bytes.data(), bytes.size(), place.file_offset);
  if (!count.ok()) throw NativeError::from_errno("pread", count.error).with_path(name_);
  if (count.value < bytes.size())
    throw NativeError("corrupt", "a compressed page file has become shorter").with_path(name_);
  if (digest_) digest_->add(place.file_offset, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  if (decompressor_of_thread(codec_).decompress(bytes, memory_.data() + place.content_offset, place.size.content_bytes))
    return;
  char what[96];
  std::snprintf(what, sizeof what, "the compressed pages at %llu of \"%s\" are damaged",
                static_cast<unsigned long long>(place.file_offset), name_.substr(0, 40).c_str());
  throw NativeError("corrupt", what).with_path(name_);
}

}  // namespace stasis
