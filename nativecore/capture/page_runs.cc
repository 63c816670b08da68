#include "capture/page_runs.h"

#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>

#include "base/native_error.h"
#include "base/sys.h"

namespace stasis {
namespace {

constexpr uint64_t kUserSpaceEnd = 0x7ffffffff000;

// --- PAGEMAP_SCAN (Linux 6.7), which our oldest headers lack

struct PageRegion {
  uint64_t start, end, categories;
};
struct ScanArguments {
  uint64_t size, flags, start, end, walk_end, regions, region_count, max_pages;
  uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
static_assert(sizeof(ScanArguments) == 96);
constexpr unsigned long kPagemapScan = _IOWR('f', 16, ScanArguments);
constexpr uint64_t kPageIsWritten = 1u << 1;
constexpr uint64_t kScanProtects = 1u << 0;
constexpr uint64_t kPageIsWpAllowed = 1u << 0;
constexpr uint64_t kPageIsFile = 1u << 2, kPageIsPresent = 1u << 3, kPageIsSwapped = 1u << 4, kPageIsZero = 1u << 5;

// --- /proc/PID/pagemap entries, admin-guide/mm/pagemap.rst

constexpr uint64_t kEntryPresent = uint64_t{1} << 63, kEntrySwapped = uint64_t{1} << 62, kEntryFile = uint64_t{1} << 61;

void add_run(std::vector<PageRun>& runs, uint64_t start, uint64_t end) {
  if (start >= end) return;
  if (!runs.empty() && runs.back().address + runs.back().page_count * kPageBytes == start) {
    runs.back().page_count += (end - start) / kPageBytes;
  } else {
    runs.push_back({start, (end - start) / kPageBytes});
  }
}

// Runs of a task, built from ranges in ascending order.
class RunCollector {
 public:
  RunCollector(const std::vector<Vma>& vmas, std::vector<PageRun>& runs) : vmas_(vmas), runs_(runs) {}

  // Pages in [start, end) have content; keeps what lies in mappings with own pages.
  void add(uint64_t start, uint64_t end) {
    while (start < end) {
      while (next_ < vmas_.size() && vmas_[next_].end <= start) pass_mapping();
      if (next_ == vmas_.size() || vmas_[next_].start >= end) return;
      const Vma& vma = vmas_[next_];
      const uint64_t from = std::max(start, vma.start);
      const uint64_t to = std::min(end, vma.end);
      if (has_own_pages(vma)) add_run(runs_, from, to);
      start = to;
    }
  }
  void finish() {
    while (next_ < vmas_.size()) pass_mapping();
  }

 private:
  // The vdso is kernel memory, taken whole: the restored process has to find
  // its own, whatever the other kernel's looks like.
  void pass_mapping() {
    const Vma& vma = vmas_[next_++];
    if (vma.name == "[vdso]") add_run(runs_, vma.start, vma.end);
  }
  const std::vector<Vma>& vmas_;
  std::vector<PageRun>& runs_;
  size_t next_ = 0;
};

// Which pages a walk looks for, as PAGEMAP_SCAN has it.
struct Wanted {
  uint64_t inverted, all_of, any_of, told;
};

// Not the zero page, not a page of the file; present or in swap.
constexpr Wanted kOwnPages = {kPageIsZero | kPageIsFile, kPageIsZero | kPageIsFile, kPageIsPresent | kPageIsSwapped,
                              kPageIsPresent | kPageIsSwapped};
// For this and nothing else the kernel looks at one bit of each entry, where it otherwise looks at the page
// (8 ms for 1 GiB). What is absent has not been protected, and is told as well.
constexpr Wanted kWritten = {0, kPageIsWritten, 0, kPageIsWritten};
// In mappings that no asynchronous write protection belongs to any more, whatever their entries say. mremap(2) beside
// a mapping of the same userfaultfd makes one of the two and takes the whole away from it; the marks stay behind, and
// a later write need not clear them.
constexpr Wanted kUnprotected = {kPageIsWpAllowed, kPageIsWpAllowed, kPageIsPresent | kPageIsSwapped,
                                 kPageIsPresent | kPageIsSwapped};

// What need not be walked through: the kernel would look at every page of it, 20 ms for 1 GiB.
constexpr uint64_t kWorthPassingBytes = 1 << 20;

struct AddressRange {
  uint64_t start, end;
};

// The whole address space but for large mappings without pages of their own.
std::vector<AddressRange> walks_over(const std::vector<Vma>& vmas) {
  std::vector<AddressRange> walks;
  uint64_t start = 0;
  for (const Vma& vma : vmas) {
    if (has_own_pages(vma) || vma.end - vma.start < kWorthPassingBytes || vma.end > kUserSpaceEnd) continue;
    if (start < vma.start) walks.push_back({start, vma.start});
    start = vma.end;
  }
  if (start < kUserSpaceEnd) walks.push_back({start, kUserSpaceEnd});
  return walks;
}

// False if the kernel has no PAGEMAP_SCAN.
bool walk_with_ioctl(int pagemap, const Wanted& wanted, const AddressRange& walk, std::vector<PageRegion>& regions,
                     RunCollector& runs) {
  ScanArguments arguments{};
  arguments.size = sizeof arguments;
  arguments.start = walk.start;
  arguments.end = walk.end;
  arguments.regions = reinterpret_cast<uint64_t>(regions.data());
  arguments.region_count = regions.size();
  arguments.category_inverted = wanted.inverted;
  arguments.category_mask = wanted.all_of;
  arguments.category_anyof_mask = wanted.any_of;
  arguments.return_mask = wanted.told;
  while (arguments.start < walk.end) {
    const sys::Try<int64_t> count = sys::try_ioctl(pagemap, kPagemapScan, &arguments);
    if (!count.ok()) {
      if (count.error == ENOTTY || count.error == EINVAL) return false;
      throw NativeError::from_errno("ioctl(PAGEMAP_SCAN)", count.error);
    }
    for (int64_t i = 0; i < count.value; ++i) {
      const PageRegion& region = regions[static_cast<size_t>(i)];
      runs.add(region.start, region.end);
    }
    // walk_end cannot be trusted: the kernel fills it when its own buffer of a
    // page runs full, and leaves that value when the rest of the walk is complete.
    // Room left means that nothing is left.
    if (static_cast<uint64_t>(count.value) < regions.size()) break;
    arguments.start = regions.back().end;
    arguments.walk_end = 0;
  }
  return true;
}

bool scan_with_ioctl(int pagemap, const Wanted& wanted, const std::vector<Vma>& vmas, RunCollector& runs) {
  std::vector<PageRegion> regions(4096);
  for (const AddressRange& walk : walks_over(vmas)) {
    if (!walk_with_ioctl(pagemap, wanted, walk, regions, runs)) return false;
  }
  return true;
}

// Older kernels: 8 bytes per page. The zero page cannot be told from others
// here without its frame number, so it is copied like any page.
void scan_with_pagemap(int pagemap, const std::vector<Vma>& vmas, RunCollector& runs) {
  std::vector<uint64_t> entries(16384);
  for (const Vma& vma : vmas) {
    if (!has_own_pages(vma)) continue;
    for (uint64_t start = vma.start; start < vma.end;) {
      const uint64_t pages = std::min<uint64_t>(entries.size(), (vma.end - start) / kPageBytes);
      const sys::Try<size_t> read =
          sys::try_pread(pagemap, entries.data(), pages * sizeof(uint64_t), start / kPageBytes * sizeof(uint64_t));
      if (!read.ok()) throw NativeError::from_errno("pread", read.error).with_path("/proc/PID/pagemap");
      const uint64_t known = read.value / sizeof(uint64_t);
      if (known == 0) break;
      for (uint64_t i = 0; i < known; ++i) {
        if ((entries[i] & (kEntryPresent | kEntrySwapped)) && !(entries[i] & kEntryFile)) {
          runs.add(start + i * kPageBytes, start + (i + 1) * kPageBytes);
        }
      }
      start += known * kPageBytes;
    }
  }
}

}  // namespace

bool has_own_pages(const Vma& vma) {
  return !vma.shared && !vma.special && vma.name != "[vdso]" && !vma.name.starts_with("[vvar") &&
         vma.name != "[vsyscall]";
}

std::vector<PageRun> find_page_runs(int pagemap, const std::vector<Vma>& vmas) {
  std::vector<PageRun> found;
  RunCollector runs(vmas, found);
  if (!scan_with_ioctl(pagemap, kOwnPages, vmas, runs)) scan_with_pagemap(pagemap, vmas, runs);
  runs.finish();
  return found;
}

std::optional<std::vector<PageRun>> find_written_runs(int pagemap, const std::vector<Vma>& vmas) {
  std::vector<PageRun> written, unprotected;
  RunCollector written_runs(vmas, written), unprotected_runs(vmas, unprotected);
  if (!scan_with_ioctl(pagemap, kWritten, vmas, written_runs)) return std::nullopt;
  if (!scan_with_ioctl(pagemap, kUnprotected, vmas, unprotected_runs)) return std::nullopt;
  written_runs.finish();
  return unite_runs(unprotected, written);
}

sys::Try<int64_t> try_protect_range(int pagemap, uint64_t start, uint64_t end) {
  ScanArguments arguments{};
  arguments.size = sizeof arguments;
  arguments.flags = kScanProtects;
  arguments.start = start;
  arguments.end = end;
  // Not what is absent: that would cost page tables, and what appears later counts as written anyway.
  arguments.category_anyof_mask = kPageIsPresent | kPageIsSwapped;
  return sys::try_ioctl(pagemap, kPagemapScan, &arguments);
}

SplitRuns split_runs(const std::vector<PageRun>& runs, const std::vector<PageRun>& by) {
  SplitRuns split;
  size_t next = 0;
  const auto end_of = [](const PageRun& run) { return run.address + run.page_count * kPageBytes; };
  for (const PageRun& run : runs) {
    uint64_t at = run.address;
    const uint64_t end = end_of(run);
    while (next < by.size() && end_of(by[next]) <= at) ++next;
    for (size_t i = next; at < end; ++i) {
      const uint64_t from = i < by.size() ? std::clamp(by[i].address, at, end) : end;
      const uint64_t to = i < by.size() ? std::clamp(end_of(by[i]), from, end) : end;
      add_run(split.outside, at, from);
      add_run(split.inside, from, to);
      at = to;
    }
  }
  return split;
}

std::vector<PageRun> unite_runs(const std::vector<PageRun>& one, const std::vector<PageRun>& other) {
  std::vector<PageRun> united = split_runs(one, other).outside;
  const auto middle = united.insert(united.end(), other.begin(), other.end());
  std::inplace_merge(united.begin(), middle, united.end(),
                     [](const PageRun& a, const PageRun& b) { return a.address < b.address; });
  return united;
}

uint64_t run_pages(const std::vector<PageRun>& runs) {
  uint64_t pages = 0;
  for (const PageRun& run : runs) pages += run.page_count;
  return pages;
}

}  // namespace stasis
