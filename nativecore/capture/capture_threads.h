// Threads, seen from outside: registers, extended state, masks, queued
// signals, rseq, robust list, scheduling, seccomp filters.
//
// Undo: nothing to undo. If we die here: the tracees are released by the kernel.
#pragma once

#include "capture/capture_context.h"

namespace stasis {

// Preconditions: capture_tasks() has filled the tasks.
void capture_threads(CaptureContext& context);

}  // namespace stasis
