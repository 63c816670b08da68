#include "executor/execute_plan.h"

#include "executor/coordinator.h"

namespace stasis {

bool execute_plan(ControlChannel& channel, const ExecuteRequest& request, PhaseRecorder& timings, Janitor* keeper) {
  Coordinator restore(channel, request, timings);
  try {
    restore.prepare();  // the janitor lives from here on: what follows is taken back even if we are killed
    if (keeper) keeper->dismiss();
    restore.open_cgroups();  // the root enters them before its first step: children are born where their parent is
    restore.load_hole();
    restore.clone_root();
    restore.write_id_maps();

    restore.run(kPhaseNamespaces);
    restore.run(kPhaseFiles);
    restore.run(kPhaseTasks);
    restore.locate_processes();  // before helpers leave: parents are still what the plan says
    restore.run(kPhaseGroups);
    restore.run(kPhaseDescriptors);
    restore.run(kPhaseMemory);
    restore.fill();
    restore.run(kPhaseThreads);
    restore.locate_threads();
    restore.seize_threads();  // while they still have our credentials, and no filter
    restore.run(kPhaseCredentials);

    restore.send_parked();
    if (restore.await_release()) {
      restore.release();
      restore.commit();
      return true;
    }
    restore.hand_over();
    if (restore.await_start()) {
      restore.release();
      restore.commit();
    }
    return false;
  } catch (NativeError& error) {
    for (NativeError& failure : restore.take_back()) error.suppress(std::move(failure));
    throw;
  }
}

}  // namespace stasis
