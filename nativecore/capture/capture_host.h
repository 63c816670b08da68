// The machine and ourselves, as a yardstick for what the tree says.
//
// Undo: nothing to undo. If we die here: the target has seen nothing.
#pragma once

#include <string_view>
#include <vector>

#include "capture/capture_data.h"

namespace stasis {

// What does not change: read while the tree still runs, because CPUID alone is
// a dozen exits to the hypervisor on a virtual machine.
void capture_host_before_freeze(CapturedHost& host);
// The clocks, at the freeze.
void capture_clocks(CapturedHost& host);

// All of /proc/PID/ns, device and inode.
std::vector<CapturedNamespaceId> namespace_ids(int proc_directory);
// 0 if there is none of this kind.
uint64_t namespace_inode(const std::vector<CapturedNamespaceId>& ids, std::string_view kind);

}  // namespace stasis
