// What is kept of a smaps text: all that is read of it later.
#include <sys/mman.h>

#include "base/sys.h"
#include "base/testing.h"
#include "proc/proc_dir.h"

using namespace stasis;
using namespace stasis::testing;

namespace {

void keeps_three_lines_of_each_mapping() {
  const std::string smaps =
      "1000-2000 rw-p 00000000 00:00 0 \nSize:                  4 kB\nRss:                   0 kB\nTHPeligible:        "
      "   0\n"
      "ProtectionKey:         1\nVmFlags: rd wr mr \n"
      "ffffffff0000-ffffffff1000 r--s 00000000 fe:01 7                 /a\\012VmFlags: b\nSize:   4 kB\nVmFlags: rd \n";
  EXPECT_EQ(smaps_without_counts(smaps),
            "1000-2000 rw-p 00000000 00:00 0 \nProtectionKey:         1\nVmFlags: rd wr mr \n"
            "ffffffff0000-ffffffff1000 r--s 00000000 fe:01 7                 /a\\012VmFlags: b\nVmFlags: rd \n");
  EXPECT_EQ(smaps_without_counts(""), "");
}

void says_the_same_of_this_process() {
  const sys::Mapping forgotten = sys::mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS);
  EXPECT(::madvise(forgotten.data(), 4096, MADV_DONTFORK) == 0);
  const sys::Try<std::string> smaps = sys::try_read_file(-1, "/proc/self/smaps");
  EXPECT(smaps.ok());
  const std::string kept = smaps_without_counts(smaps.value);
  EXPECT(kept.size() < smaps.value.size() / 2);
  const std::vector<Vma> all = parse_maps(smaps.value), again = parse_maps(kept);
  EXPECT_EQ(again.size(), all.size());
  size_t not_forked = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(again[i].start, all[i].start);
    EXPECT_EQ(again[i].end, all[i].end);
    EXPECT_EQ(again[i].name, all[i].name);
    EXPECT_EQ(again[i].not_forked, all[i].not_forked);
    EXPECT_EQ(again[i].special, all[i].special);
    not_forked += again[i].not_forked;
  }
  EXPECT(not_forked > 0);
}

}  // namespace

int main(int argc, char** argv) {
  return run_cases({{"keeps three lines of each mapping", keeps_three_lines_of_each_mapping},
                    {"says the same of this process", says_the_same_of_this_process}},
                   argc, argv);
}
