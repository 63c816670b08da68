// Data of files without a name: where it lies, copied and read; and the ids that their images tell.
#include "capture/object_content.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "base/page.h"
#include "base/testing.h"
#include "capture/capture_deleted_files.h"

namespace stasis::testing {
namespace {

UniqueFd make_sparse_file() {
  UniqueFd file = sys::openat(AT_FDCWD, "/dev/shm", O_TMPFILE | O_RDWR, 0600);
  EXPECT_EQ(::pwrite(file.borrow(), "first", 5, 0), ssize_t{5});
  EXPECT_EQ(::pwrite(file.borrow(), "last", 4, 10 * kPageBytes + 7), ssize_t{4});
  return file;
}

void finds_data_and_holes() {
  const UniqueFd file = make_sparse_file();
  const std::vector<PageRun> runs = find_data_runs(file.borrow(), 10 * kPageBytes + 11);
  EXPECT_EQ(runs.size(), size_t{2});
  EXPECT_EQ(runs[0].address, uint64_t{0});
  EXPECT_EQ(runs[0].page_count, uint64_t{1});
  EXPECT_EQ(runs[1].address, 10 * kPageBytes);
  EXPECT_EQ(runs[1].page_count, uint64_t{1});
  EXPECT(find_data_runs(file.borrow(), 0).empty());
}

void copies_what_is_there_at_the_time() {
  const UniqueFd file = make_sparse_file();
  const std::vector<PageRun> runs = find_data_runs(file.borrow(), 10 * kPageBytes + 11);
  CopiedObject copy(2 * kPageBytes, nullptr);
  copy_objects({{file.borrow(), &runs, &copy}}, [] {});
  EXPECT_EQ(::pwrite(file.borrow(), "later", 5, 0), ssize_t{5});
  const std::vector<PagePiece> pieces = cut_into_pieces(runs);
  EXPECT_EQ(pieces.size(), size_t{1});
  const unsigned char* const bytes = copy.read(pieces[0], nullptr);
  EXPECT_EQ(std::memcmp(bytes, "first", 5), 0);
  EXPECT_EQ(std::memcmp(bytes + kPageBytes + 7, "last", 4), 0);
  // Past the end of the file are zeroes.
  EXPECT_EQ(int{bytes[2 * kPageBytes - 1]}, 0);
}

void tells_ids_as_seen_inside() {
  const std::string map = "         0     100000      65536\n     70000       1000          1\n";
  EXPECT_EQ(inside_id("", 77), 77u);
  EXPECT_EQ(inside_id(map, 100000), 0u);
  EXPECT_EQ(inside_id(map, 165535), 65535u);
  EXPECT_EQ(inside_id(map, 1000), 70000u);
  EXPECT_EQ(inside_id(map, 165536), 65534u);
  EXPECT_EQ(inside_id(map, 0), 65534u);
}

}  // namespace
}  // namespace stasis::testing

int main(int argc, char** argv) {
  using namespace stasis::testing;
  return run_cases({{"finds data and holes", finds_data_and_holes},
                    {"copies what is there at the time", copies_what_is_there_at_the_time},
                    {"tells ids as seen inside", tells_ids_as_seen_inside}},
                   argc, argv);
}
