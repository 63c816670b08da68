// Which pages are found of a process that has shared memory between its own.
#include "capture/page_runs.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/testing.h"
#include "proc/proc_dir.h"

namespace stasis::testing {
namespace {

constexpr uint64_t kOwnPages = 4;

std::vector<PageRun> runs_between(const std::vector<PageRun>& runs, const unsigned char* start, uint64_t length_bytes) {
  const uint64_t from = reinterpret_cast<uint64_t>(start);
  std::vector<PageRun> within;
  for (const PageRun& run : runs) {
    const uint64_t begin = std::max(run.address, from);
    const uint64_t end = std::min(run.address + run.page_count * kPageBytes, from + length_bytes);
    if (begin < end) within.push_back({(begin - from) / kPageBytes, (end - begin) / kPageBytes});
  }
  return within;
}

// Own memory, shared memory that is passed by or walked through, own memory.
void expect_own_pages_around(uint64_t shared_bytes) {
  const uint64_t own_bytes = kOwnPages * kPageBytes;
  const uint64_t length = shared_bytes + 2 * own_bytes;
  sys::Mapping place = sys::mmap(0, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  unsigned char* const start = place.data();
  unsigned char* const shared = start + own_bytes;
  EXPECT(::mmap(shared, shared_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == shared);
  std::memset(shared, 1, shared_bytes);
  start[kPageBytes] = 1;
  start[length - kPageBytes] = 1;
  const ProcDir own = ProcDir::open(::getpid());
  const std::vector<Vma> vmas = parse_maps(own.read("maps"));
  const UniqueFd pagemap = sys::openat(own.borrow(), "pagemap", O_RDONLY);
  const std::vector<PageRun> found = runs_between(find_page_runs(pagemap.borrow(), vmas), start, length);
  EXPECT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].address, 1u);
  EXPECT_EQ(found[0].page_count, 1u);
  EXPECT_EQ(found[1].address, length / kPageBytes - 1);
  EXPECT_EQ(found[1].page_count, 1u);
}

void finds_own_pages_beside_little_shared_memory() { expect_own_pages_around(64 << 10); }
void finds_own_pages_beside_much_shared_memory() { expect_own_pages_around(8 << 20); }

}  // namespace
}  // namespace stasis::testing

int main(int argc, char** argv) {
  using namespace stasis::testing;
  return run_cases({{"own pages beside little shared memory", finds_own_pages_beside_little_shared_memory},
                    {"own pages beside much shared memory", finds_own_pages_beside_much_shared_memory}},
                   argc, argv);
}
