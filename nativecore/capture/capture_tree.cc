#include "capture/capture_tree.h"

#include "base/fault_point.h"
#include "capture/capture_connections.h"
#include "capture/capture_files.h"
#include "capture/capture_from_inside.h"
#include "capture/capture_host.h"
#include "capture/capture_strangers.h"
#include "capture/capture_tasks.h"
#include "capture/capture_threads.h"

namespace stasis {

void capture_tree(CaptureContext& context, ReturnPathFinder& return_paths, FilesCapture& files,
                  std::unique_ptr<NamespaceCapture> namespaces, PhaseRecorder& phases) {
  phases.enter("tasks");
  capture_clocks(context.data.host);  // first: timers are read relative to them
  capture_namespace_ids(context);
  // Beside the tracer, because it needs no ptrace: namespaces, mounts, tmpfs.
  namespaces->start(context);
  capture_tasks(context);  // address ranges, before the parasite adds one
  phases.enter("threads");
  capture_threads(context);  // registers, before the parasite borrows them
  phases.enter("inside");
  capture_from_inside(context, return_paths);
  phases.enter("files");
  files.capture(context);
  phases.enter("strangers");
  capture_strangers(context);
  phases.enter("namespaces");
  namespaces->finish(context.data, phases);
  // When no other thread of ours runs: the guard is forked, and our death has to be one.
  phases.enter("connections");
  context.connections->capture(context);
  context.check_abort();
  fault_point("metadata_complete");
}

}  // namespace stasis
