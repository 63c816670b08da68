// Processes: /proc texts, exe, cwd, root, namespaces, what they share.
//
// Undo: nothing to undo. If we die here: the tracees are released by the kernel.
#pragma once

#include "capture/capture_context.h"

namespace stasis {

// One CapturedTask per process of the tree, in its order.
void capture_tasks(CaptureContext& context);

// smaps and what stands behind the mappings.
void capture_mappings(CapturedTask& task, const ProcDir& proc);
// The same from the task's twin, when the target runs again.
void capture_mappings_of_twin(CapturedTask& task);

}  // namespace stasis
