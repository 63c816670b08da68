// Tasks in the container's cgroups that are not of its tree: they were not
// frozen, and are reported so that nobody believes they were captured.
//
// Undo: nothing to undo. If we die here: the target has seen nothing.
#pragma once

#include "capture/capture_context.h"

namespace stasis {

void capture_strangers(CaptureContext& context);

}  // namespace stasis
