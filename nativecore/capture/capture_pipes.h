// Pipes and FIFOs: capacity and unread bytes.
//
// Undo: nothing to undo: tee(2) copies and leaves the bytes where they are.
// If we die here: the target has seen nothing.
#pragma once

#include "capture/capture_data.h"

namespace stasis {

// `own_fd` is our copy of a description that can be read from.
CapturedPipe capture_pipe(const CapturedOpenFile& file, int own_fd);

}  // namespace stasis
