// Which pages of an address space have content of their own: what a fresh
// mapping of the same kind would not hold.
//
// Undo: nothing to undo, it only reads.
// If we die here: the target has seen nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/page.h"
#include "base/sys.h"
#include "capture/capture_data.h"

namespace stasis {

// Which mappings can hold pages of their own. Shared ones belong to their file
// or memory object; vvar and vsyscall belong to the kernel.
bool has_own_pages(const Vma& vma);

// `pagemap`: /proc/PID/pagemap of the address space; `vmas`: its mappings in
// ascending order. The vdso is taken whole. Ascending, neighbours joined.
std::vector<PageRun> find_page_runs(int pagemap, const std::vector<Vma>& vmas);

// Those of them that were written to since they were last protected by
// UFFD_FEATURE_WP_ASYNC, and all that never were. No value: the kernel has no PAGEMAP_SCAN.
std::optional<std::vector<PageRun>> find_written_runs(int pagemap, const std::vector<Vma>& vmas);

// Protects the pages of a range that are there (PM_SCAN_WP_MATCHING).
sys::Try<int64_t> try_protect_range(int pagemap, uint64_t start, uint64_t end);

// Both ascending and without overlaps, as are the results.
struct SplitRuns {
  std::vector<PageRun> inside, outside;
};
SplitRuns split_runs(const std::vector<PageRun>& runs, const std::vector<PageRun>& by);
std::vector<PageRun> unite_runs(const std::vector<PageRun>& one, const std::vector<PageRun>& other);

uint64_t run_pages(const std::vector<PageRun>& runs);

}  // namespace stasis
