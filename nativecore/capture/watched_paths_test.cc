// What fdinfo tells of inotify watches.
#include "capture/watched_paths.h"

#include <fcntl.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "base/sys.h"
#include "base/testing.h"
#include "capture/path_facts.h"

namespace stasis::testing {
namespace {

void reads_the_lines_of_watches_and_no_others() {
  const std::vector<Watch> watches = parse_watches(
      "pos:\t0\nflags:\t02004000\nmnt_id:\t15\nino:\t1057\n"
      "inotify wd:2 ino:58411f sdev:fe00000 mask:fc6 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 "
      "f_handle:1f41580012345678\n"
      "inotify wd:1 ino:a sdev:4 mask:2 ignored_mask:0\n");
  EXPECT_EQ(watches.size(), 2u);
  EXPECT_EQ(watches[0].number, 2);
  EXPECT_EQ(watches[0].id.device, 0xfe00000u);
  EXPECT_EQ(watches[0].id.inode, 0x58411fu);
  EXPECT_EQ(watches[0].id.handle_type, 1);
  EXPECT_EQ(watches[0].id.handle, std::string("\x1f\x41\x58\x00\x12\x34\x56\x78", 8));
  EXPECT(watches[1].id == (WatchedId{4, 10, 0, ""}));
}

void takes_no_longer_handle_than_the_kernel_makes() {
  const std::string line = "inotify wd:1 ino:1 sdev:1 mask:1 ignored_mask:0 fhandle-bytes:ff fhandle-type:1 f_handle:";
  EXPECT_EQ(parse_watches(line + std::string(2000, 'a')).at(0).id.handle.size(), 128u);
}

// The kernel's own text, of a directory whose numbers stat(2) tells as well.
void reads_what_this_kernel_prints() {
  const UniqueFd instance(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  EXPECT(::inotify_add_watch(instance.borrow(), "/proc", IN_DELETE_SELF) == 1);
  const std::string name = "/proc/self/fdinfo/" + std::to_string(instance.borrow());
  const std::vector<Watch> watches = parse_watches(sys::read_file(AT_FDCWD, name.c_str()));
  EXPECT_EQ(watches.size(), 1u);
  const CapturedStatx stat = stat_of(AT_FDCWD, "/proc");
  EXPECT_EQ(watches[0].id.device, stat.device);
  EXPECT_EQ(watches[0].id.inode, stat.inode);
}

}  // namespace
}  // namespace stasis::testing

int main(int argc, char** argv) {
  using namespace stasis::testing;
  return run_cases({{"reads the lines of watches and no others", reads_the_lines_of_watches_and_no_others},
                    {"takes no longer handle than the kernel makes", takes_no_longer_handle_than_the_kernel_makes},
                    {"reads what this kernel prints", reads_what_this_kernel_prints}},
                   argc, argv);
}
