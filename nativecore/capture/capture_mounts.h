// Mount namespaces: mountinfo, and the content of the tmpfs mounts that were
// asked for.
//
// Undo: nothing to undo; detached clones of mounts vanish with their descriptors.
// If we die here: the target has seen nothing.
#pragma once

#include <utility>
#include <vector>

#include "capture/capture_data.h"
#include "trace/frozen_tree.h"

namespace stasis {

// Preconditions: runs in a thread that may be left in the target's mount namespace.
// `processes` with the inode of each one's mount namespace, the root's first.
void capture_mounts(const std::vector<std::pair<const TracedProcess*, uint64_t>>& processes, uint64_t own_inode,
                    const CaptureRequest& request, CaptureData& found);

}  // namespace stasis
