// Puts page data into tasks that wait in the hole: through their userfaultfds,
// or through /proc/PID/mem where a mapping cannot be registered.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/progress.h"
#include "executor/hole.h"
#include "executor/lazy_memory.h"
#include "executor/plan_model.h"
#include "executor/restored_tree.h"

namespace stasis {

struct FillSummary {
  uint64_t lazy_bytes = 0;  // left to the page process
  uint64_t uffd_bytes = 0;
  uint64_t mem_bytes = 0;
};

// `images_directory` is borrowed; page files are opened in it. `digests`, by number of the page file: files of which
// there is a page digest, used or not, are compared with it, but for those that are noted in `lazy`. With `lazy` what
// would go through userfaultfds is noted there instead, with the descriptors.
FillSummary fill_memory(const Plan& plan, const Hole& hole, const RestoredTree& tree, int images_directory,
                        const std::vector<std::string>& digests, const Deadline& deadline, Progress& progress,
                        LazyMemory* lazy = nullptr);

}  // namespace stasis
