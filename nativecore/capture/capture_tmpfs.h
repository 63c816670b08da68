// The content of one tmpfs: everything below its root, parents first, names in
// byte order, files that other mounts hide included.
//
// Undo: nothing to undo; files are opened with O_NOATIME.
// If we die here: the target has seen nothing.
#pragma once

#include <cstdint>
#include <string>

#include "capture/capture_data.h"

namespace stasis {

// Takes the bytes of file content off `left_bytes`; throws "tmpfs_too_large" when they do not suffice.
CapturedTmpfs read_tmpfs(const std::string& mount_point, int mount, uint64_t& left_bytes);

}  // namespace stasis
