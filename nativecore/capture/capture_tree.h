// THE sequence of a capture: what is read while the tree is stopped, in order.
#pragma once

#include "capture/capture_context.h"
#include "base/timing.h"

namespace stasis {

// Everything but page contents.
// Preconditions: the tree is frozen.
// Postconditions: it is as it was found, and still frozen.
void capture_tree(CaptureContext& context, PhaseRecorder& phases);

}  // namespace stasis
