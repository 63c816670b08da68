#include "base/page_codec.h"

#include <lz4frame.h>
#include <sys/stat.h>
#include <zstd.h>

#include <cerrno>
#include <cstring>
#include <new>
#include <string>

#include "base/native_error.h"
#include "base/page.h"
#include "base/sys.h"

namespace stasis {
namespace {

// --- the index: zstd, contrib/seekable_format/zstd_seekable_compression_format.md

constexpr uint32_t kSkippableMagic = 0x184D2A5E;
constexpr uint32_t kIndexMagic = 0x8F92EAB1;
constexpr uint64_t kHeaderBytes = 8;  // of a skippable frame: magic, length
constexpr uint64_t kFooterBytes = 9;  // number of frames, descriptor, magic
constexpr uint64_t kEntryBytes = 8;   // compressed length, length
constexpr unsigned char kChecksumFlag = 0x80;
// 1 TiB in frames of the usual size.
constexpr uint64_t kMaximalFrames = 1 << 22;

void put32(std::string& to, uint32_t value) {
  for (int shift = 0; shift < 32; shift += 8) to.push_back(static_cast<char>(value >> shift));
}

uint32_t get32(const std::string& from, uint64_t at) {
  uint32_t value = 0;
  for (uint64_t i = 0; i < 4; ++i) value |= uint32_t{static_cast<unsigned char>(from[at + i])} << (8 * i);
  return value;
}

std::string read_exactly(int file, uint64_t offset, uint64_t length_bytes) {
  std::string bytes(length_bytes, '\0');
  const sys::Try<size_t> count = sys::try_pread_all(file, bytes.data(), length_bytes, offset);
  if (!count.ok()) throw NativeError::from_errno("pread", count.error);
  if (count.value < length_bytes) throw NativeError("corrupt", "a compressed page file ends too early");
  return bytes;
}

[[noreturn]] void refuse(const char* what) { throw NativeError("corrupt", what); }

}  // namespace

PageCodec codec_of_name(std::string_view name) {
  return name == "lz4" ? PageCodec::lz4 : name == "zstd" ? PageCodec::zstd : PageCodec::none;
}

const char* suffix_of(PageCodec codec) {
  return codec == PageCodec::lz4 ? ".lz4" : codec == PageCodec::zstd ? ".zst" : "";
}

PageCodec codec_of_file(std::string_view file_name) {
  for (const PageCodec codec : {PageCodec::lz4, PageCodec::zstd}) {
    if (file_name.ends_with(suffix_of(codec))) return codec;
  }
  return PageCodec::none;
}

struct FrameCompressor::State {
  ~State() { ZSTD_freeCCtx(zstd); }
  PageCodec codec;
  LZ4F_preferences_t lz4{};
  ZSTD_CCtx* zstd = nullptr;
  std::vector<char> buffer;
};

FrameCompressor::FrameCompressor(PageCodec codec, int level) : state_(std::make_unique<State>()) {
  state_->codec = codec;
  if (codec == PageCodec::lz4) {
    state_->lz4.frameInfo.blockSizeID = LZ4F_max256KB;
    state_->lz4.frameInfo.contentChecksumFlag = LZ4F_contentChecksumEnabled;
    state_->lz4.compressionLevel = level;
    state_->buffer.resize(LZ4F_compressFrameBound(kFrameBytes, &state_->lz4));
    return;
  }
  state_->zstd = ZSTD_createCCtx();
  if (!state_->zstd) throw std::bad_alloc();
  ZSTD_CCtx_setParameter(state_->zstd, ZSTD_c_compressionLevel, level);
  ZSTD_CCtx_setParameter(state_->zstd, ZSTD_c_checksumFlag, 1);
  state_->buffer.resize(ZSTD_compressBound(kFrameBytes));
}

FrameCompressor::~FrameCompressor() = default;

std::string_view FrameCompressor::compress(const unsigned char* bytes, uint64_t length_bytes) {
  std::vector<char>& buffer = state_->buffer;
  if (state_->codec == PageCodec::lz4) {
    const size_t length = LZ4F_compressFrame(buffer.data(), buffer.size(), bytes, length_bytes, &state_->lz4);
    if (LZ4F_isError(length)) throw NativeError("bug", LZ4F_getErrorName(length));
    return {buffer.data(), length};
  }
  const size_t length = ZSTD_compress2(state_->zstd, buffer.data(), buffer.size(), bytes, length_bytes);
  if (ZSTD_isError(length)) throw NativeError("bug", ZSTD_getErrorName(length));
  return {buffer.data(), length};
}

struct FrameDecompressor::State {
  ~State() {
    LZ4F_freeDecompressionContext(lz4);
    ZSTD_freeDCtx(zstd);
  }
  LZ4F_dctx* lz4 = nullptr;
  ZSTD_DCtx* zstd = nullptr;
};

FrameDecompressor::FrameDecompressor(PageCodec codec) : state_(std::make_unique<State>()) {
  if (codec == PageCodec::lz4) {
    if (LZ4F_isError(LZ4F_createDecompressionContext(&state_->lz4, LZ4F_VERSION))) throw std::bad_alloc();
  } else {
    state_->zstd = ZSTD_createDCtx();
    if (!state_->zstd) throw std::bad_alloc();
  }
}

FrameDecompressor::~FrameDecompressor() = default;

bool FrameDecompressor::decompress(std::string_view frame, unsigned char* to, uint64_t length_bytes) {
  if (state_->zstd)
    return ZSTD_decompressDCtx(state_->zstd, to, length_bytes, frame.data(), frame.size()) == length_bytes;
  LZ4F_resetDecompressionContext(state_->lz4);  // the last one may have failed half-way
  uint64_t done = 0, read = 0;
  bool ended = false;
  while (!ended && read < frame.size()) {
    size_t produced = length_bytes - done, taken = frame.size() - read;
    const size_t wanted = LZ4F_decompress(state_->lz4, to + done, &produced, frame.data() + read, &taken, nullptr);
    if (LZ4F_isError(wanted)) return false;
    done += produced;
    read += taken;
    ended = wanted == 0;
    if (!ended && produced == 0 && taken == 0) return false;  // it has more content than the index says
  }
  return ended && done == length_bytes && read == frame.size();
}

std::string encode_frame_index(const std::vector<FrameSize>& frames) {
  std::string bytes;
  put32(bytes, kSkippableMagic);
  put32(bytes, static_cast<uint32_t>(frames.size() * kEntryBytes + kFooterBytes));
  for (const FrameSize& frame : frames) {
    put32(bytes, frame.compressed_bytes);
    put32(bytes, frame.content_bytes);
  }
  put32(bytes, static_cast<uint32_t>(frames.size()));
  bytes.push_back(0);
  put32(bytes, kIndexMagic);
  return bytes;
}

std::vector<FramePlace> read_frame_index(int file) {
  struct stat status;
  if (::fstat(file, &status) < 0) throw NativeError::from_errno("fstat", errno);
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size < kHeaderBytes + kFooterBytes) refuse("a compressed page file has no index");
  const std::string footer = read_exactly(file, size - kFooterBytes, kFooterBytes);
  if (get32(footer, 5) != kIndexMagic) refuse("a compressed page file has no index at its end");
  const uint64_t count = get32(footer, 0);
  const uint64_t entry_bytes = kEntryBytes + (static_cast<unsigned char>(footer[4]) & kChecksumFlag ? 4 : 0);
  const uint64_t length = kHeaderBytes + count * entry_bytes + kFooterBytes;
  if (count > kMaximalFrames) refuse("the index of a compressed page file has more than 4194304 frames");
  if (length > size) refuse("the index of a compressed page file is longer than the file");
  const std::string index = read_exactly(file, size - length, length);
  if (get32(index, 0) != kSkippableMagic || get32(index, 4) != length - kHeaderBytes)
    refuse("the index of a compressed page file does not begin where it should");
  std::vector<FramePlace> frames;
  frames.reserve(count);
  uint64_t file_offset = 0, content_offset = 0;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t at = kHeaderBytes + i * entry_bytes;
    const FrameSize frame{get32(index, at), get32(index, at + 4)};
    if (frame.content_bytes == 0 || frame.content_bytes > kMaximalFrameBytes || frame.content_bytes % kPageBytes != 0)
      refuse("a frame of a compressed page file is not of whole pages, or larger than 1 MiB");
    // Neither codec makes more of what it cannot compress.
    if (frame.compressed_bytes == 0 || frame.compressed_bytes > 2 * kMaximalFrameBytes)
      refuse("a frame of a compressed page file has an impossible length");
    frames.push_back({file_offset, content_offset, frame});
    file_offset += frame.compressed_bytes;
    content_offset += frame.content_bytes;
  }
  if (file_offset != size - length) refuse("the frames of a compressed page file do not fill it");
  return frames;
}

}  // namespace stasis
