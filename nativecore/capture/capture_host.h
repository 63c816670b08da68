// The machine and ourselves, as a yardstick for what the tree says.
//
// Undo: nothing to undo. If we die here: the target has seen nothing.
#pragma once

#include "capture/capture_data.h"

namespace stasis {

void capture_host(CapturedHost& host);

// All of /proc/PID/ns, device and inode.
std::vector<CapturedNamespaceId> namespace_ids(int proc_directory);

}  // namespace stasis
