// What only the task itself can tell: signal actions, timers, alternate
// stacks, limits, prctl state. The parasite asks.
//
// Undo: Infection's destructor. If we die here: see parasite/infection.h.
#pragma once

#include "capture/capture_context.h"

namespace stasis {

// Preconditions: capture_threads() has filled the threads.
void capture_from_inside(CaptureContext& context);

}  // namespace stasis
