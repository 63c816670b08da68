// Mount namespaces: mountinfo, and the content of the tmpfs mounts that were
// asked for.
//
// Undo: nothing to undo; detached clones of mounts vanish with their descriptors.
// If we die here: the target has seen nothing.
#pragma once

#include "capture/capture_data.h"
#include "trace/frozen_tree.h"

namespace stasis {

// Preconditions: runs in a thread that may be left in the target's mount namespace.
void capture_mounts(const FrozenTree& tree, const CaptureRequest& request, CaptureData& found);

}  // namespace stasis
