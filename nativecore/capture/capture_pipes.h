// Pipes and FIFOs: capacity and unread bytes.
//
// Undo: nothing to undo: tee(2) copies and leaves the bytes where they are.
// If we die here: the target has seen nothing.
#pragma once

#include "capture/capture_context.h"

namespace stasis {

// `own_fd` is our copy of the description. Adds a CapturedPipe the first time
// that a read end of the inode comes by.
void capture_pipe(CaptureContext& context, const CapturedOpenFile& file, int own_fd);

}  // namespace stasis
