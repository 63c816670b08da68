// Descriptor tables and open file descriptions. Each description is looked at
// once, through a copy fetched with pidfd_getfd(2); the copy is closed before
// the next, because a pipe or socket end that we hold is one that its peer
// cannot see closing.
//
// Undo: our copies are closed by their owners.
// If we die here: our copies are closed by the kernel. Offsets, flags and locks
// belong to the description or to the target's table and are not touched.
#pragma once

#include "capture/capture_context.h"

namespace stasis {

// Preconditions: capture_tasks() has filled the tasks.
void capture_files(CaptureContext& context);

}  // namespace stasis
