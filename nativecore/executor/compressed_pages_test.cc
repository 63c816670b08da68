// Compressed page files read at random by several threads, and damaged ones.
#include "executor/compressed_pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/native_error.h"
#include "base/page.h"
#include "base/testing.h"

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

bool is_right(const CompressedPages& pages, uint64_t offset, uint64_t length) {
  const auto* words = reinterpret_cast<const uint64_t*>(pages.data() + offset);
  for (uint64_t i = 0; i < length / sizeof(uint64_t); ++i) {
    if (words[i] != offset / sizeof(uint64_t) + i) return false;
  }
  return true;
}

// Everything in pieces, and again and again at random: what has left comes back.
void serves_several_threads() {
  for (const auto& [codec, name] :
       {std::pair{PageCodec::lz4, "pages-1.img.lz4"}, {PageCodec::zstd, "pages-1.img.zst"}}) {
    const File file(codec);
    const UniqueFd opened = file.open();
    CompressedPages pages(opened.borrow(), name);
    EXPECT_EQ(pages.length_bytes(), file.content_bytes);
    std::atomic<int> wrong = 0;
    std::vector<std::jthread> threads;
    for (int thread = 0; thread < 4; ++thread) {
      threads.emplace_back([&, thread] {
        std::mt19937_64 random(static_cast<uint64_t>(thread));
        for (int i = 0; i < 2000; ++i) {
          const uint64_t offset = random() % (file.content_bytes / kPageBytes) * kPageBytes;
          const uint64_t length = std::min((1 + random() % 100) * kPageBytes, file.content_bytes - offset);
          pages.hold(offset, length);
          if (!is_right(pages, offset, length)) ++wrong;
          pages.release(offset, length);
        }
      });
    }
    threads.clear();
    EXPECT_EQ(wrong.load(), 0);
  }
}

// Memory is that of the frames in use, not of the file.
void gives_memory_back() {
  const File file(PageCodec::lz4);
  const UniqueFd opened = file.open();
  CompressedPages pages(opened.borrow(), "pages-1.img.lz4");
  const auto resident = [&] {
    std::vector<unsigned char> present(file.content_bytes / kPageBytes);
    ::mincore(const_cast<unsigned char*>(pages.data()), file.content_bytes, present.data());
    uint64_t count = 0;
    for (const unsigned char page : present) count += page & 1;
    return count;
  };
  for (uint64_t offset = 0; offset < file.content_bytes; offset += kPageBytes) {
    pages.hold(offset, kPageBytes);
    EXPECT(resident() <= kFrameBytes / kPageBytes);
    pages.release(offset, kPageBytes);
  }
  EXPECT_EQ(resident(), 0u);
}

void tells_of_damage_where_it_is() {
  for (const auto& [codec, name] :
       {std::pair{PageCodec::lz4, "pages-1.img.lz4"}, {PageCodec::zstd, "pages-1.img.zst"}}) {
    File file(codec);
    file.bytes[read_frame_index(file.open().borrow())[5].file_offset + 40] ^= 1;
    const UniqueFd opened = file.open();
    CompressedPages pages(opened.borrow(), name);
    const uint64_t damaged = read_frame_index(file.open().borrow())[5].content_offset;
    pages.hold(0, damaged);
    EXPECT(is_right(pages, 0, damaged));
    for (int attempt = 0; attempt < 2; ++attempt) {
      bool failed = false;
      try {
        pages.hold(damaged, kPageBytes);
      } catch (const NativeError& error) {
        EXPECT_EQ(error.reason, std::string("corrupt"));
        failed = true;
      }
      EXPECT(failed);
    }
  }
}

}  // namespace
}  // namespace stasis::testing

int main(int argc, char** argv) {
  using namespace stasis::testing;
  return run_cases(
      {
          {"serves several threads", serves_several_threads},
          {"gives memory back", gives_memory_back},
          {"tells of damage where it is", tells_of_damage_where_it_is},
      },
      argc, argv);
}
