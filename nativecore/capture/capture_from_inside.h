// What only the task itself can tell: signal actions, timers, alternate
// stacks, limits, prctl state. The parasite asks.
//
// Undo: Infection's destructor. If we die here: see parasite/infection.h.
#pragma once

#include "capture/capture_context.h"
#include "trace/return_path.h"

namespace stasis {

// Preconditions: capture_threads() has filled the threads.
void capture_from_inside(CaptureContext& context, ReturnPathFinder& return_paths);

// Searches the root's libraries before the freeze, where it costs nobody time.
void find_return_paths_before_freeze(pid_t root_host_pid, ReturnPathFinder& return_paths);

}  // namespace stasis
