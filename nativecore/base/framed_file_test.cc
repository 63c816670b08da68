// Compressed page files read at random by several threads, and damaged ones.
#include "base/framed_file.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/native_error.h"
#include "base/page.h"
#include "base/testing.h"
#include "base/unique_fd.h"

namespace stasis::testing {
namespace {

constexpr uint64_t kFrames = 24;

// Word i of the content is i; frames are of different lengths.
struct File {
  explicit File(PageCodec codec) {
    FrameCompressor compressor(codec, 1);
    std::vector<FrameSize> frames;
    uint64_t word = 0;
    for (uint64_t number = 0; number < kFrames; ++number) {
      std::vector<uint64_t> words((1 + number * 7 % 64) * kPageBytes / sizeof(uint64_t));
      for (uint64_t& each : words) each = word++;
      const uint64_t length = words.size() * sizeof(uint64_t);
      const std::string_view frame = compressor.compress(reinterpret_cast<unsigned char*>(words.data()), length);
      frames.push_back({static_cast<uint32_t>(frame.size()), static_cast<uint32_t>(length)});
      bytes += frame;
      content_bytes += length;
    }
    bytes += encode_frame_index(frames);
  }
  UniqueFd open() const {
    UniqueFd file(::memfd_create("pages", MFD_CLOEXEC));
    if (::write(file.borrow(), bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) throw Failed("write");
    return file;
  }
  std::string bytes;
  uint64_t content_bytes = 0;
};

bool is_right(const std::vector<uint64_t>& words, uint64_t offset, uint64_t length) {
  for (uint64_t i = 0; i < length / sizeof(uint64_t); ++i) {
    if (words[i] != offset / sizeof(uint64_t) + i) return false;
  }
  return true;
}

std::vector<uint64_t> words_of(const FramedFile& pages, uint64_t offset, uint64_t length) {
  std::vector<uint64_t> words(length / sizeof(uint64_t));
  pages.read(offset, reinterpret_cast<unsigned char*>(words.data()), length);
  return words;
}

// Everything in pieces, of frames whole and in part, of two files at once.
void serves_several_threads() {
  for (const auto& [codec, name] :
       {std::pair{PageCodec::lz4, "pages-1.img.lz4"}, {PageCodec::zstd, "pages-1.img.zst"}}) {
    const File file(codec);
    const UniqueFd opened = file.open(), another = file.open();
    const FramedFile pages(opened.borrow(), name), others(another.borrow(), name);
    EXPECT_EQ(pages.length_bytes(), file.content_bytes);
    std::atomic<int> wrong = 0;
    std::vector<std::jthread> threads;
    for (int thread = 0; thread < 4; ++thread) {
      threads.emplace_back([&, thread] {
        std::mt19937_64 random(static_cast<uint64_t>(thread));
        for (int i = 0; i < 2000; ++i) {
          const uint64_t offset = random() % (file.content_bytes / kPageBytes) * kPageBytes;
          const uint64_t length = std::min((1 + random() % 100) * kPageBytes, file.content_bytes - offset);
          if (!is_right(words_of(i % 2 ? pages : others, offset, length), offset, length)) ++wrong;
        }
      });
    }
    threads.clear();
    EXPECT_EQ(wrong.load(), 0);
  }
}

// The digest is that of the file, whatever was read of it and how often.
void hands_frames_to_the_digest() {
  const File file(PageCodec::lz4);
  const UniqueFd opened = file.open();
  PageDigest of_reader, of_file;
  const FramedFile pages(opened.borrow(), "pages-1.img.lz4", &of_reader);
  words_of(pages, 0, file.content_bytes / kPageBytes / 2 * kPageBytes);
  words_of(pages, kPageBytes, kPageBytes);
  EXPECT_EQ(of_reader.finish(opened.borrow(), file.bytes.size(), 1),
            of_file.finish(opened.borrow(), file.bytes.size(), 1));
}

std::string reason_of(const FramedFile& pages, uint64_t offset, uint64_t length) {
  try {
    words_of(pages, offset, length);
  } catch (const NativeError& error) {
    return error.reason;
  }
  return "";
}

void tells_of_damage_where_it_is() {
  for (const auto& [codec, name] :
       {std::pair{PageCodec::lz4, "pages-1.img.lz4"}, {PageCodec::zstd, "pages-1.img.zst"}}) {
    File file(codec);
    const FramePlace frame = read_frame_index(file.open().borrow())[5];
    file.bytes[frame.file_offset + 40] ^= 1;
    const UniqueFd opened = file.open();
    const FramedFile pages(opened.borrow(), name);
    EXPECT(is_right(words_of(pages, 0, frame.content_offset), 0, frame.content_offset));
    // In part and whole, and again: nothing of it is kept.
    for (int attempt = 0; attempt < 2; ++attempt) {
      EXPECT_EQ(reason_of(pages, frame.content_offset, kPageBytes), std::string("corrupt"));
      EXPECT_EQ(reason_of(pages, frame.content_offset, frame.size.content_bytes), std::string("corrupt"));
    }
    std::vector<unsigned char> buffer(frame.content_offset + kPageBytes);
    EXPECT_EQ(pages.try_read(0, buffer.data(), buffer.size()).done_bytes, frame.content_offset);
    EXPECT_EQ(reason_of(pages, file.content_bytes - kPageBytes, 2 * kPageBytes), std::string("truncated"));
    EXPECT_EQ(reason_of(pages, file.content_bytes, kPageBytes), std::string("truncated"));
  }
}

}  // namespace
}  // namespace stasis::testing

int main(int argc, char** argv) {
  using namespace stasis::testing;
  return run_cases(
      {
          {"serves several threads", serves_several_threads},
          {"hands frames to the digest", hands_frames_to_the_digest},
          {"tells of damage where it is", tells_of_damage_where_it_is},
      },
      argc, argv);
}
