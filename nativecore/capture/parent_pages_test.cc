// What is left of memory in a page file when a parent checkpoint holds a part of it.
#include "capture/parent_pages.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <random>

#include "base/testing.h"
#include "capture/testing_core.h"
#include "capture/testing_memory.h"

namespace stasis::testing {
namespace {

UniqueFd open_directory(const std::string& path) { return sys::openat(AT_FDCWD, path.c_str(), O_RDONLY | O_DIRECTORY); }

// A checkpoint that was made of `memory`, in a directory of its own.
class Parent {
 public:
  Parent(const Memory& memory, std::vector<PageRun> runs, PageCodec codec = PageCodec::none)
      : directory_(open_directory(images_.path())), name_(std::string("pages-1.img") + suffix_of(codec)) {
    ControlChannel nobody{UniqueFd()};
    Progress progress(nobody, "write pages");
    PageFiles files(directory_.borrow(), progress, codec, codec == PageCodec::zstd ? 1 : 0);
    std::vector<PageFiles::Content> contents{{0, 1, std::move(runs), &memory, {}}};
    files.write(contents, PageFiles::Hurry::no, [] {});
    files.keep();
    uint64_t offset = 0;
    for (const PageRun& run : contents[0].runs) {
      runs_.push_back({run.address, run.page_count, 0, offset});
      offset += run.page_count * kPageBytes;
    }
  }
  std::string path() const { return images_.path() + "/" + name_; }
  ParentPages pages() const { return {directory_.borrow(), {name_}, runs_}; }
  uint64_t page_count() const {
    uint64_t count = 0;
    for (const ParentRun& run : runs_) count += run.page_count;
    return count;
  }

 private:
  ImagesDirectory images_;
  UniqueFd directory_;
  std::string name_;
  std::vector<ParentRun> runs_;
};

struct Child {
  PageFiles::Content content;
  std::string bytes;
  uint64_t zeroes = 0;
};

Child write_child(const Memory& memory, std::vector<PageRun> runs, const ParentPages& parent,
                  PageFiles::Hurry hurry = PageFiles::Hurry::no) {
  const ImagesDirectory images;
  const UniqueFd directory = open_directory(images.path());
  ControlChannel nobody{UniqueFd()};
  Progress progress(nobody, "write pages");
  PageFiles files(directory.borrow(), progress);
  std::vector<PageFiles::Content> contents{{0, 1, std::move(runs), &memory, {}, &parent}};
  Child child;
  child.zeroes = files.write(contents, hurry, [] {});
  child.content = contents[0];
  std::ifstream file(images.path() + "/pages-1.img", std::ios::binary);
  child.bytes.assign(std::istreambuf_iterator<char>(file), {});
  return child;
}

// What a restore makes of both: what was left to the parent is as it was then.
void expect_same(Memory& now, Memory& then, const Child& child) {
  std::string restored(now.pages() * kPageBytes, '\0');
  for (const PageRun& run : child.content.equal)
    restored.replace(run.address - kBase, run.page_count * kPageBytes,
                     reinterpret_cast<const char*>(then.page((run.address - kBase) / kPageBytes)),
                     run.page_count * kPageBytes);
  uint64_t offset = 0;
  for (const PageRun& run : child.content.runs) {
    restored.replace(run.address - kBase, run.page_count * kPageBytes, child.bytes, offset,
                     run.page_count * kPageBytes);
    offset += run.page_count * kPageBytes;
  }
  EXPECT_EQ(offset, child.bytes.size());
  EXPECT(std::memcmp(restored.data(), now.page(0), restored.size()) == 0);
  EXPECT(split_runs(child.content.runs, child.content.equal).inside.empty());
}

void leaves_equal_pages_to_the_parent() {
  Memory then(600);
  then.fill(0, 500);
  const Parent parent(then, {{kBase, 600}});
  Memory now = then;
  now.page(20)[4095] ^= 1;
  now.page(300)[0] ^= 1;
  now.fill(500, 508);                             // the parent had zeroes there
  std::memset(now.page(100), 0, 8 * kPageBytes);  // and has content here
  const Child child = write_child(now, {{kBase, 550}}, parent.pages());
  EXPECT_EQ(child.content.compared_pages, 500u);
  EXPECT_EQ(run_pages(child.content.equal), 500u - 2 - 8);
  EXPECT_EQ(child.bytes.size(), 10 * kPageBytes);
  EXPECT_EQ(child.zeroes, 42u + 8);
  expect_same(now, then, child);
}

void writes_short_stretches_along() {
  Memory then(64);
  then.fill(0, 64);
  const Parent parent(then, {{kBase, 64}});
  Memory now = then;
  for (uint64_t page = 0; page < 64; page += 4) now.page(page)[7] ^= 1;
  const Child child = write_child(now, {{kBase, 64}}, parent.pages());
  EXPECT_EQ(child.content.compared_pages, 64u);
  EXPECT_EQ(run_pages(child.content.equal), 0u);
  EXPECT_EQ(child.content.runs.size(), 1u);
  expect_same(now, then, child);
}

void does_not_compare_in_a_hurry() {
  Memory then(64);
  then.fill(0, 64);
  const Parent parent(then, {{kBase, 64}});
  const Child child = write_child(then, {{kBase, 64}}, parent.pages(), PageFiles::Hurry::yes);
  EXPECT_EQ(child.content.compared_pages, 0u);
  EXPECT_EQ(child.bytes.size(), 64 * kPageBytes);
}

// Cut off in the middle of a page, and then gone.
void writes_what_the_parent_has_lost() {
  Memory then(64);
  then.fill(0, 64);
  const Parent parent(then, {{kBase, 64}});
  const ParentPages opened = parent.pages();
  EXPECT_EQ(::truncate(parent.path().c_str(), 20 * kPageBytes + 100), 0);
  const Child child = write_child(then, {{kBase, 64}}, opened);
  EXPECT_EQ(run_pages(child.content.equal), 20u);
  expect_same(then, then, child);
  EXPECT_EQ(::unlink(parent.path().c_str()), 0);
  EXPECT_EQ(write_child(then, {{kBase, 64}}, parent.pages()).bytes.size(), 64 * kPageBytes);
}

void writes_what_is_damaged_in_a_compressed_parent() {
  Memory then(300);
  then.fill(0, 300);
  const Parent parent(then, {{kBase, 300}}, PageCodec::zstd);
  {
    std::fstream file(parent.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(20);  // in the first frame
    file.put('\x5a');
    file.put('\xa5');
  }
  const Child child = write_child(then, {{kBase, 300}}, parent.pages());
  // With it, what would have been read together.
  EXPECT_EQ(run_pages(child.content.equal), 300u - kPieceBytes / kPageBytes);
  expect_same(then, then, child);
}

// Several workers, many pieces, runs of the parent that end anywhere in them.
void agrees_with_memory_whatever_has_changed() {
  std::mt19937_64 random(815);
  for (const PageCodec codec : {PageCodec::none, PageCodec::zstd}) {
    Memory then(12'000);
    for (uint64_t at = 0; at < then.pages();) {
      const uint64_t end = std::min(at + random() % 700, then.pages());
      if (random() % 3) then.fill(at, end);
      at = end + random() % 9;
    }
    std::vector<PageRun> runs;
    for (uint64_t at = random() % 50; at < then.pages();) {
      const uint64_t pages = std::min(1 + random() % 900, then.pages() - at);
      runs.push_back({kBase + at * kPageBytes, pages});
      at += pages + random() % 3;
    }
    const Parent parent(then, runs, codec);
    Memory now = then;
    for (int i = 0; i < 400; ++i) now.page(random() % now.pages())[random() % kPageBytes] ^= 3;
    const Child child = write_child(now, {{kBase, 12'000}}, parent.pages());
    EXPECT_EQ(child.content.compared_pages, parent.page_count());
    EXPECT(run_pages(child.content.equal) > parent.page_count() / 2);
    expect_same(now, then, child);
  }
}

}  // namespace
}  // namespace stasis::testing

int main(int argc, char** argv) {
  using namespace stasis::testing;
  return run_cases(
      {
          {"leaves equal pages to the parent", leaves_equal_pages_to_the_parent},
          {"writes short stretches of equal pages along", writes_short_stretches_along},
          {"does not compare in a hurry", does_not_compare_in_a_hurry},
          {"writes what the parent has lost", writes_what_the_parent_has_lost},
          {"writes what is damaged in a compressed parent", writes_what_is_damaged_in_a_compressed_parent},
          {"agrees with memory, whatever has changed", agrees_with_memory_whatever_has_changed},
      },
      argc, argv);
}
