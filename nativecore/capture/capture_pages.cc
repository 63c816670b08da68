#include "capture/capture_pages.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "base/fault_point.h"
#include "base/native_error.h"
#include "base/parallel.h"
#include "base/sys.h"

namespace stasis {
namespace {

constexpr uint64_t kPageBytes = 4096;
// One process_vm_readv and one pwrite each: large enough that their cost
// vanishes, small enough to stay in the cache between the two.
constexpr uint64_t kPieceBytes = 1 << 20;
constexpr size_t kMaximalWindows = 512;  // of IOV_MAX, 1024
constexpr uint64_t kParallelBytes = 8 << 20;
constexpr unsigned kMaximalWorkers = 4;
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
constexpr uint64_t kPageIsFile = 1u << 2, kPageIsPresent = 1u << 3, kPageIsSwapped = 1u << 4, kPageIsZero = 1u << 5;

// --- /proc/PID/pagemap entries, admin-guide/mm/pagemap.rst

constexpr uint64_t kEntryPresent = uint64_t{1} << 63, kEntrySwapped = uint64_t{1} << 62, kEntryFile = uint64_t{1} << 61;

// Which mappings can hold pages of their own. Shared ones belong to their file
// or memory object; vvar and vsyscall belong to the kernel.
bool has_own_pages(const Vma& vma) {
  return !vma.shared && !vma.special && vma.name != "[vdso]" && !vma.name.starts_with("[vvar") &&
         vma.name != "[vsyscall]";
}

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

// One walk over the whole address space; false if the kernel has no PAGEMAP_SCAN.
bool scan_with_ioctl(int pagemap, RunCollector& runs) {
  std::vector<PageRegion> regions(4096);
  ScanArguments arguments{};
  arguments.size = sizeof arguments;
  arguments.end = kUserSpaceEnd;
  arguments.regions = reinterpret_cast<uint64_t>(regions.data());
  arguments.region_count = regions.size();
  // Not the zero page, not a page of the file; present or in swap.
  arguments.category_inverted = kPageIsZero | kPageIsFile;
  arguments.category_mask = kPageIsZero | kPageIsFile;
  arguments.category_anyof_mask = kPageIsPresent | kPageIsSwapped;
  arguments.return_mask = kPageIsPresent | kPageIsSwapped;
  while (arguments.start < kUserSpaceEnd) {
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

uint64_t run_pages(const std::vector<PageRun>& runs) {
  uint64_t pages = 0;
  for (const PageRun& run : runs) pages += run.page_count;
  return pages;
}

// A stretch of the page file and the ranges that fill it.
struct Piece {
  uint64_t file_offset = 0;
  uint64_t length_bytes = 0;
  std::vector<iovec> windows;  // addresses in the target
};

std::vector<Piece> cut_into_pieces(const std::vector<PageRun>& runs) {
  std::vector<Piece> pieces(1);
  for (const PageRun& run : runs) {
    uint64_t address = run.address;
    uint64_t left = run.page_count * kPageBytes;
    while (left) {
      if (pieces.back().length_bytes == kPieceBytes || pieces.back().windows.size() == kMaximalWindows) {
        pieces.push_back({pieces.back().file_offset + pieces.back().length_bytes, 0, {}});
      }
      Piece& piece = pieces.back();
      const uint64_t length = std::min(left, kPieceBytes - piece.length_bytes);
      piece.windows.push_back({reinterpret_cast<void*>(address), length});
      piece.length_bytes += length;
      address += length;
      left -= length;
    }
  }
  return pieces;
}

class PageWriter {
 public:
  PageWriter(pid_t host_pid, int memory, int file) : host_pid_(host_pid), memory_(memory), file_(file) {}

  void write(const Piece& piece, unsigned char* buffer) {
    read(piece, buffer);
    for (uint64_t done = 0; done < piece.length_bytes;) {
      const sys::Try<size_t> count =
          sys::try_pwrite(file_, buffer + done, piece.length_bytes - done, piece.file_offset + done);
      if (!count.ok())
        throw NativeError::from_errno("pwrite", count.error).with_what("writing the page file").with_pid(host_pid_);
      if (count.value == 0) throw NativeError("no_space", "writing the page file").with_pid(host_pid_);
      done += count.value;
    }
  }

 private:
  void read(const Piece& piece, unsigned char* buffer) {
    const iovec local{buffer, piece.length_bytes};
    const sys::Try<size_t> fast =
        sys::try_process_vm_readv(host_pid_, &local, 1, piece.windows.data(), piece.windows.size());
    if (fast.ok() && fast.value == piece.length_bytes) return;
    if (!fast.ok() && fast.error == ESRCH) throw NativeError("task_gone", "reading memory").with_pid(host_pid_);
    // Stopped at a mapping without read permission: /proc/PID/mem reads it with force.
    for (const iovec& window : piece.windows) {
      const uint64_t address = reinterpret_cast<uint64_t>(window.iov_base);
      for (uint64_t done = 0; done < window.iov_len;) {
        const sys::Try<size_t> count = sys::try_pread(memory_, buffer + done, window.iov_len - done, address + done);
        if (!count.ok() || count.value == 0) {
          throw NativeError::from_errno("pread", count.ok() ? ESRCH : count.error)
              .with_path("/proc/PID/mem")
              .with_pid(host_pid_)
              .with_address(address + done);
        }
        done += count.value;
      }
      buffer += window.iov_len;
    }
  }

  pid_t host_pid_;
  int memory_;
  int file_;
};

// Pieces are taken in order by all workers; the calling thread is the one that
// asks whether to go on.
void write_task(CaptureContext& context, const TracedProcess& process, const std::vector<PageRun>& runs, int file) {
  const UniqueFd memory = sys::openat(process.proc.borrow(), "mem", O_RDONLY);
  const std::vector<Piece> pieces = cut_into_pieces(runs);
  const unsigned workers = run_pages(runs) * kPageBytes < kParallelBytes ? 1 : kMaximalWorkers;
  parallel_for(pieces.size(), workers, [&](size_t index, bool in_caller) {
    static thread_local sys::Mapping buffer;
    if (!buffer.valid()) buffer = sys::mmap(0, kPieceBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    if (in_caller) context.check_abort();
    PageWriter(process.host_pid, memory.borrow(), file).write(pieces[index], buffer.data());
  });
}

}  // namespace

uint64_t page_bytes(const PageMapData& pages) {
  uint64_t total = 0;
  for (const TaskPages& task : pages.tasks) total += run_pages(task.runs) * kPageBytes;
  return total;
}

PageMapData scan_pages(CaptureContext& context) {
  fault_point("scan_pages");
  PageMapData found;
  uint32_t pages_id = context.request.first_pages_id;
  for (size_t i = 0; i < context.data.tasks.size(); ++i) {
    const CapturedTask& task = context.data.tasks[i];
    if (task.zombie) continue;
    STASIS_CONTEXT("finding pages", task.host_pid);
    context.check_abort();
    TaskPages pages{task.host_pid, pages_id++, {}};
    RunCollector runs(task.vmas, pages.runs);
    const UniqueFd pagemap = sys::openat(context.tree.processes()[i]->proc.borrow(), "pagemap", O_RDONLY);
    if (!scan_with_ioctl(pagemap.borrow(), runs)) scan_with_pagemap(pagemap.borrow(), task.vmas, runs);
    runs.finish();
    for (const Vma& vma : task.vmas) {
      if (has_own_pages(vma)) found.scanned_pages += (vma.end - vma.start) / kPageBytes;
    }
    found.tasks.push_back(std::move(pages));
  }
  return found;
}

PageFiles::~PageFiles() {
  for (const std::string& name : names_) ::unlinkat(images_directory_, name.c_str(), 0);
}

void PageFiles::write(CaptureContext& context, const PageMapData& pages) {
  fault_point("write_pages");
  size_t process_index = 0;
  for (const TaskPages& task : pages.tasks) {
    STASIS_CONTEXT("writing pages", task.host_pid);
    while (context.tree.processes()[process_index]->host_pid != task.host_pid) ++process_index;
    char name[48];
    std::snprintf(name, sizeof name, "pages-%u.img", task.pages_id);
    const UniqueFd file = sys::openat(images_directory_, name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0600);
    names_.emplace_back(name);
    write_task(context, *context.tree.processes()[process_index], task.runs, file.borrow());
    fault_point("pages_file_written");
  }
}

}  // namespace stasis
