// What is left of memory with pages of zeroes when it lies in a page file.
#include "capture/zero_pages.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "base/native_error.h"
#include "base/testing.h"
#include "capture/testing_core.h"
#include "capture/testing_memory.h"

namespace stasis::testing {
namespace {

struct Written {
  std::vector<PageRun> runs;
  std::string bytes;
  uint64_t left_out = 0;
};

Written write(const Memory& memory, std::vector<PageRun> runs, std::vector<PageRun> backed = {}) {
  const ImagesDirectory images;
  const UniqueFd directory = sys::openat(AT_FDCWD, images.path().c_str(), O_RDONLY | O_DIRECTORY);
  ControlChannel nobody{UniqueFd()};
  Progress progress(nobody, "write pages");
  PageFiles files(directory.borrow(), progress);
  std::vector<PageFiles::Content> contents{{0, 1, std::move(runs), &memory, std::move(backed)}};
  Written written;
  written.left_out = files.write(contents, PageFiles::Hurry::no, [] {});
  written.runs = contents[0].runs;
  std::ifstream file(images.path() + "/pages-1.img", std::ios::binary);
  written.bytes.assign(std::istreambuf_iterator<char>(file), {});
  return written;
}

// Pages in their place, everything else zeroes: what a restore makes of it.
void expect_same(Memory& memory, const Written& written) {
  std::string restored(memory.pages() * kPageBytes, '\0');
  uint64_t offset = 0, end = 0;
  for (const PageRun& run : written.runs) {
    EXPECT(run.address > end);  // joined, ascending
    end = run.address + run.page_count * kPageBytes;
    EXPECT(offset + run.page_count * kPageBytes <= written.bytes.size());
    restored.replace(run.address - kBase, run.page_count * kPageBytes, written.bytes, offset,
                     run.page_count * kPageBytes);
    offset += run.page_count * kPageBytes;
  }
  EXPECT_EQ(offset, written.bytes.size());
  EXPECT(std::memcmp(restored.data(), memory.page(0), restored.size()) == 0);
}

void leaves_out_stretches_of_zeroes() {
  Memory memory(64);
  memory.fill(0, 10);
  memory.fill(30, 33);
  const Written written = write(memory, {{kBase, 64}});
  EXPECT_EQ(written.bytes.size(), 13 * kPageBytes);
  EXPECT_EQ(written.runs.size(), 2u);
  EXPECT_EQ(written.left_out, 51u);
  expect_same(memory, written);
}

void writes_short_gaps_along() {
  Memory memory(64);
  for (uint64_t page = 0; page < 64; page += 4) memory.fill(page, page + 1);
  const Written written = write(memory, {{kBase, 61}});
  EXPECT_EQ(written.runs.size(), 1u);
  EXPECT_EQ(written.left_out, 0u);
  expect_same(memory, written);
}

void writes_zeroes_that_hide_a_file() {
  Memory memory(64);
  memory.fill(0, 8);
  const Written written = write(memory, {{kBase, 64}}, {{kBase + 16 * kPageBytes, 4}, {kBase + 40 * kPageBytes, 8}});
  EXPECT_EQ(written.runs.size(), 3u);
  EXPECT_EQ(written.runs[1].address, kBase + 16 * kPageBytes);
  EXPECT_EQ(written.runs[1].page_count, 4u);
  EXPECT_EQ(written.runs[2].address, kBase + 40 * kPageBytes);
  EXPECT_EQ(written.left_out, 44u);
  expect_same(memory, written);
}

void a_file_of_zeroes_is_empty() {
  Memory memory(1000);
  const Written written = write(memory, {{kBase, 1}, {kBase + 3 * kPageBytes, 997}});
  EXPECT_EQ(written.bytes.size(), 0u);
  EXPECT_EQ(written.runs.size(), 0u);
  EXPECT_EQ(written.left_out, 998u);
}

// Many pieces, several workers: the order of the file is that of the addresses.
void keeps_the_order_with_several_workers() {
  std::mt19937_64 random(4711);
  for (int round = 0; round < 5; ++round) {
    Memory memory(12'000);
    for (uint64_t at = 0; at < memory.pages();) {
      const uint64_t end = std::min(at + random() % 700, memory.pages());
      if (random() % 2) memory.fill(at, end);
      at = end + random() % 9;
    }
    std::vector<PageRun> runs;
    for (uint64_t at = 0; at < memory.pages();) {
      const uint64_t pages = std::min(1 + random() % 900, memory.pages() - at);
      runs.push_back({kBase + at * kPageBytes, pages});
      at += pages;
    }
    expect_same(memory, write(memory, runs));
  }
}

void a_failure_ends_the_wait_of_the_others() {
  Memory memory(12'000);
  memory.fill(0, memory.pages());
  memory.fails_at = kBase + 256 * 20 * kPageBytes;
  try {
    write(memory, {{kBase, memory.pages()}});
  } catch (const NativeError& error) {
    EXPECT_EQ(error.reason, std::string("task_gone"));
    return;
  }
  throw Failed("it did not fail");
}

}  // namespace
}  // namespace stasis::testing

int main(int argc, char** argv) {
  using namespace stasis::testing;
  return run_cases(
      {
          {"leaves out stretches of zeroes", leaves_out_stretches_of_zeroes},
          {"writes short gaps along", writes_short_gaps_along},
          {"writes zeroes that hide what a file holds", writes_zeroes_that_hide_a_file},
          {"a file of nothing but zeroes is empty", a_file_of_zeroes_is_empty},
          {"keeps the order with several workers", keeps_the_order_with_several_workers},
          {"a failure ends the wait of the others", a_failure_ends_the_wait_of_the_others},
      },
      argc, argv);
}
