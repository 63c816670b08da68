// Compressed page files: what comes back, and what hostile ones come to.
#include "base/page_codec.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <string>

#include "base/native_error.h"
#include "base/page.h"
#include "base/sys.h"
#include "base/testing.h"

namespace stasis::testing {
namespace {

std::string content(uint64_t pages, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string bytes(pages * kPageBytes, '\0');
  // Half random, half words that come again.
  for (uint64_t at = 0; at < bytes.size(); at += 8) {
    const uint64_t word = at / 512 % 2 ? random() : at / 4096;
    std::memcpy(bytes.data() + at, &word, sizeof word);
  }
  return bytes;
}

const unsigned char* raw(const std::string& bytes) { return reinterpret_cast<const unsigned char*>(bytes.data()); }
unsigned char* raw(std::string& bytes) { return reinterpret_cast<unsigned char*>(bytes.data()); }

template <typename Action>
void with_both(Action action) {
  for (const PageCodec codec : {PageCodec::lz4, PageCodec::zstd}) action(codec);
}

void gives_back_what_it_took() {
  with_both([](PageCodec codec) {
    FrameCompressor compressor(codec, 1);
    FrameDecompressor decompressor(codec);
    for (uint64_t pages = 1; pages <= kFrameBytes / kPageBytes; pages += 9) {
      const std::string in = content(pages, pages);
      const std::string_view frame = compressor.compress(raw(in), in.size());
      EXPECT(frame.size() < in.size());
      std::string out(in.size(), '\1');
      EXPECT(decompressor.decompress(frame, raw(out), out.size()));
      EXPECT(in == out);
    }
  });
}

// Every byte of a frame, flipped: noticed, or without effect (a flag that means nothing to us).
void notices_every_flipped_bit() {
  with_both([](PageCodec codec) {
    FrameCompressor compressor(codec, 1);
    FrameDecompressor decompressor(codec);
    const std::string in = content(2, 1);
    const std::string frame(compressor.compress(raw(in), in.size()));
    for (size_t at = 0; at < frame.size(); ++at) {
      std::string damaged = frame;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << at % 8));
      std::string out(in.size() + 64, '\x55');
      if (decompressor.decompress(damaged, raw(out), in.size())) EXPECT(out.compare(0, in.size(), in) == 0);
      EXPECT(out.substr(in.size()) == std::string(64, '\x55'));
    }
    // What has failed leaves nothing behind.
    std::string out(in.size(), '\0');
    EXPECT(decompressor.decompress(frame, raw(out), out.size()));
    EXPECT(in == out);
  });
}

void refuses_other_lengths() {
  with_both([](PageCodec codec) {
    FrameCompressor compressor(codec, 1);
    FrameDecompressor decompressor(codec);
    const std::string in = content(4, 1);
    const std::string frame(compressor.compress(raw(in), in.size()));
    std::string out(in.size() * 2, '\0');
    EXPECT(!decompressor.decompress(frame, raw(out), in.size() - kPageBytes));
    EXPECT(!decompressor.decompress(frame, raw(out), in.size() + kPageBytes));
    EXPECT(!decompressor.decompress(frame.substr(0, frame.size() - 1), raw(out), in.size()));
    EXPECT(!decompressor.decompress(frame + "x", raw(out), in.size()));
    EXPECT(!decompressor.decompress(frame + frame, raw(out), in.size()));
    EXPECT(!decompressor.decompress("", raw(out), in.size()));
  });
}

std::vector<FramePlace> read_index(const std::string& bytes) {
  const UniqueFd file(::memfd_create("index", MFD_CLOEXEC));
  if (::write(file.borrow(), bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) throw Failed("write");
  return read_frame_index(file.borrow());
}

void finds_the_frames() {
  const std::string index = encode_frame_index({{100, 4096}, {50, 262144}, {7, 8192}});
  const std::vector<FramePlace> frames = read_index(std::string(157, 'x') + index);
  EXPECT_EQ(frames.size(), 3u);
  EXPECT_EQ(frames[1].file_offset, 100u);
  EXPECT_EQ(frames[1].content_offset, 4096u);
  EXPECT_EQ(frames[2].file_offset, 150u);
  EXPECT_EQ(frames[2].content_offset, 4096u + 262144);
  EXPECT_EQ(read_index(encode_frame_index({})).size(), 0u);
}

void expect_refused(const std::string& bytes, const char* says) {
  try {
    read_index(bytes);
  } catch (const NativeError& error) {
    EXPECT_EQ(error.reason, std::string("corrupt"));
    if (error.action.find(says) == std::string::npos) throw Failed("\"" + error.action + "\" instead of " + says);
    return;
  }
  throw Failed(std::string("not refused: ") + says);
}

void refuses_hostile_indexes() {
  const auto with = [](const std::vector<FrameSize>& frames, uint64_t length) {
    return std::string(length, 'x') + encode_frame_index(frames);
  };
  const std::string good = with({{100, 4096}}, 100);
  expect_refused("", "no index");
  expect_refused(std::string(4096, '\0'), "no index at its end");
  expect_refused(good + "x", "no index at its end");
  expect_refused(good.substr(1), "do not fill it");
  expect_refused("x" + good, "do not fill it");
  expect_refused(with({{100, 4097}}, 100), "whole pages");
  expect_refused(with({{100, 0}}, 100), "whole pages");
  expect_refused(with({{100, 2 << 20}}, 100), "larger than 1 MiB");
  expect_refused(with({{0, 4096}}, 0), "impossible length");
  expect_refused(with({{0xffffffff, 4096}}, 100), "impossible length");
  std::string many = good;
  many.replace(many.size() - 9, 4, "\xff\xff\xff\xff");
  expect_refused(many, "more than 4194304 frames");
  std::string more = good;
  more.replace(more.size() - 9, 4, std::string("\0\0\1\0", 4));
  expect_refused(more, "longer than the file");
  std::string elsewhere = good;
  elsewhere[100] ^= 1;
  expect_refused(elsewhere, "does not begin where it should");
  std::string longer = good;
  longer[104] ^= 1;
  expect_refused(longer, "does not begin where it should");
}

}  // namespace
}  // namespace stasis::testing

int main(int argc, char** argv) {
  using namespace stasis::testing;
  return run_cases(
      {
          {"gives back what it took", gives_back_what_it_took},
          {"notices every flipped bit", notices_every_flipped_bit},
          {"refuses frames of other lengths", refuses_other_lengths},
          {"finds the frames", finds_the_frames},
          {"refuses hostile indexes", refuses_hostile_indexes},
      },
      argc, argv);
}
