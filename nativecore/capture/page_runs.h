// Which pages of an address space have content of their own: what a fresh
// mapping of the same kind would not hold.
//
// Undo: nothing to undo, it only reads.
// If we die here: the target has seen nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "base/page.h"
#include "capture/capture_data.h"

namespace stasis {

// Which mappings can hold pages of their own. Shared ones belong to their file
// or memory object; vvar and vsyscall belong to the kernel.
bool has_own_pages(const Vma& vma);

// `pagemap`: /proc/PID/pagemap of the address space; `vmas`: its mappings in
// ascending order. The vdso is taken whole. Ascending, neighbours joined.
std::vector<PageRun> find_page_runs(int pagemap, const std::vector<Vma>& vmas);

uint64_t run_pages(const std::vector<PageRun>& runs);

}  // namespace stasis
