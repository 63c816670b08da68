// THE sequence of a capture: what is read while the tree is stopped, in order.
#pragma once

#include <memory>

#include "base/timing.h"
#include "capture/capture_context.h"
#include "capture/capture_files.h"
#include "capture/capture_namespaces.h"
#include "trace/return_path.h"

namespace stasis {

// Everything but page contents, and the names of open files.
// Preconditions: the tree is frozen.
// Postconditions: it is as it was found, and still frozen.
void capture_tree(CaptureContext& context, ReturnPathFinder& return_paths, FilesCapture& files,
                  std::unique_ptr<NamespaceCapture> namespaces, PhaseRecorder& phases);

}  // namespace stasis
