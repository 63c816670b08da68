// Page files as several threads write them: the same bytes and digest, however they get to the disk.
#include "capture/page_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <random>
#include <vector>

#include "base/native_error.h"
#include "base/parallel.h"
#include "base/testing.h"

namespace stasis::testing {
namespace {

UniqueFd open_directory(const char* path) { return sys::openat(AT_FDCWD, path, O_RDONLY | O_DIRECTORY); }

struct Stretch {
  uint64_t offset, length;
};

// Ends in the midst of a block unless `step` is of whole pages.
std::vector<Stretch> stretches_of(uint64_t size_bytes, uint64_t step) {
  std::vector<Stretch> stretches;
  for (uint64_t at = 0; at < size_bytes; at += step) stretches.push_back({at, std::min(step, size_bytes - at)});
  // As threads would come: nearly in order.
  for (size_t i = 0; i + 2 < stretches.size(); i += 3) std::swap(stretches[i], stretches[i + 2]);
  return stretches;
}

void writes_the_same(PageWriting how, const char* directory_path, uint64_t size_bytes, uint64_t step) {
  std::mt19937_64 random(size_bytes);
  std::vector<unsigned char> content(size_bytes);
  for (unsigned char& byte : content) byte = static_cast<unsigned char>(random());
  const std::string name = "page-file-test-" + std::to_string(::getpid());
  const UniqueFd directory = open_directory(directory_path);
  PageFile file(directory.borrow(), name, how);
  const std::vector<Stretch> stretches = stretches_of(size_bytes, step);
  parallel_for(stretches.size(), 4, [&](size_t index, bool) {
    const Stretch& stretch = stretches[index];
    file.write(stretch.offset, content.data() + stretch.offset, stretch.length, 0);
  });
  const WrittenPageFile written = file.finish(size_bytes, 1, [] {});
  const std::string path = std::string(directory_path) + "/" + name;
  std::ifstream input(path, std::ios::binary);
  const std::vector<char> found{std::istreambuf_iterator<char>(input), {}};
  const UniqueFd opened = sys::openat(AT_FDCWD, path.c_str(), O_RDONLY);
  const std::string digest = PageDigest().finish(opened.borrow(), size_bytes, 1);
  ::unlink(path.c_str());
  EXPECT_EQ(found.size(), content.size());
  EXPECT(std::equal(content.begin(), content.end(), reinterpret_cast<const unsigned char*>(found.data())));
  EXPECT_EQ(written.digest, digest);
  EXPECT_EQ(written.size_bytes, size_bytes);
  EXPECT(how == PageWriting::direct || !written.direct);
}

constexpr uint64_t kSizes[] = {0, 5, 4096, 1 << 20, (1 << 20) + 4096, (9 << 20) + 4096 * 7, (17 << 20) + 123};

void writes_whole_pages() {
  for (const PageWriting how : {PageWriting::cached, PageWriting::early, PageWriting::direct}) {
    for (const uint64_t size : kSizes) writes_the_same(how, ".", size, 1 << 20);
  }
}

void writes_what_ends_anywhere() {
  for (const PageWriting how : {PageWriting::cached, PageWriting::early, PageWriting::direct}) {
    for (const uint64_t size : kSizes) writes_the_same(how, ".", size, 100'003);
  }
}

void writes_to_memory() {
  const UniqueFd directory = open_directory("/dev/shm");
  const std::string name = "page-file-test-" + std::to_string(::getpid());
  PageFile file(directory.borrow(), name, PageWriting::direct);
  const std::vector<unsigned char> content(4096, 7);
  file.write(0, content.data(), content.size(), 0);
  const WrittenPageFile written = file.finish(content.size(), 1, [] {});
  ::unlinkat(directory.borrow(), name.c_str(), 0);
  EXPECT(!written.direct);
}

// The end of the file is told from what was written, not believed.
void tells_of_a_gap() {
  const UniqueFd directory = open_directory(".");
  const std::string name = "page-file-test-" + std::to_string(::getpid());
  PageFile file(directory.borrow(), name, PageWriting::direct);
  const std::vector<unsigned char> content(5000, 7);
  file.write(0, content.data(), content.size(), 0);
  std::string reason;
  try {
    file.finish(9000, 1, [] {});
  } catch (const NativeError& error) {
    reason = error.reason;
  }
  ::unlinkat(directory.borrow(), name.c_str(), 0);
  // Whoever puts windows together knows it; else the digest finds that the file is shorter.
  EXPECT(reason == "bug" || reason == "truncated");
}

}  // namespace
}  // namespace stasis::testing

int main(int argc, char** argv) {
  using namespace stasis::testing;
  return run_cases({{"writes whole pages", writes_whole_pages},
                    {"writes what ends anywhere", writes_what_ends_anywhere},
                    {"writes to memory", writes_to_memory},
                    {"tells of a gap", tells_of_a_gap}},
                   argc, argv);
}
