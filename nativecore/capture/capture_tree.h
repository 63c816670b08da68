// THE sequence of a capture: what is read while the tree is stopped, in order.
#pragma once

#include "base/timing.h"
#include "capture/capture_context.h"
#include "trace/return_path.h"

namespace stasis {

// Everything but page contents.
// Preconditions: the tree is frozen.
// Postconditions: it is as it was found, and still frozen.
void capture_tree(CaptureContext& context, ReturnPathFinder& return_paths, PhaseRecorder& phases);

}  // namespace stasis
