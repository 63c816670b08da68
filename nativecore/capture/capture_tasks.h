// Processes: /proc texts, exe, cwd, root, namespaces, what they share.
//
// Undo: nothing to undo. If we die here: the tracees are released by the kernel.
#pragma once

#include "capture/capture_context.h"

namespace stasis {

// The order that kcmp(2) gives the tasks of a running tree, for each kind of object that tasks can share. With it as a
// hint one comparison for each task is enough in the window; where it is no longer true it costs some more.
KcmpOrders order_tasks_before_freeze(const std::vector<ProcDir>& tree);

// Tasks whose smaps would be too long to read in the window, so that no time is lost there with finding that out. Where
// there are so many that the kernel would take 1 ms to find those with files, the window looks where they were before;
// the twin tells afterwards whether that was all (knows_all_shared).
KnownMappings find_many_mappings_before_freeze(const std::vector<ProcDir>& tree);

// The kernel makes the entry of a name below /proc when it is asked for first, and keeps it: what the window asks of
// each process is quicker then (0.1 ms of 0.4). The answers are not kept.
void ask_once_before_freeze(const std::vector<ProcDir>& tree);

// One CapturedTask per process of the tree, in its order: first which there are, and in which namespaces.
void capture_namespace_ids(CaptureContext& context);
// Then everything else that /proc tells of them.
void capture_tasks(CaptureContext& context);

// smaps and what stands behind the mappings.
void capture_mappings(CapturedTask& task, const ProcDir& proc);
// The same from the task's twin, when the target runs again.
void capture_mappings_of_twin(CapturedTask& task);

}  // namespace stasis
