// What a core that was killed has left in a target: its parasite's mapping, and
// for a moment threads that have not gone home yet.
//
// Undo: nothing to undo: both are signs of an earlier run, and go for good.
// If we die here: as before us.
#pragma once

#include <vector>

#include "base/deadline.h"
#include "proc/proc_dir.h"
#include "trace/frozen_tree.h"

namespace stasis {

struct StaleParasite {
  uint64_t address = 0;
  uint64_t length_bytes = 0;
};

std::vector<StaleParasite> find_stale_parasites(pid_t host_pid, const std::vector<Vma>& vmas);

// Lets threads that are still in one run until they have gone home, at most
// parasite::kWaitNanoseconds and a little; the process is stopped again afterwards.
void let_threads_go_home(FrozenTree& tree, TracedProcess& process, const std::vector<StaleParasite>& stale,
                         const Deadline& deadline);

}  // namespace stasis
