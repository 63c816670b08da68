// The restore sequence.
#pragma once

#include "base/control_channel.h"
#include "base/timing.h"
#include "executor/janitor.h"
#include "executor/plan_model.h"

namespace stasis {

// From a request to a running tree. Precondition: this process has one thread.
// Postconditions: on return the tree runs and owes us nothing; on an exception
// no task of it is left and the request's undo actions have been performed.
// `keeper`, if any, watches over what was made before the request; it is
// dismissed as soon as the request's own janitor is there. False: it has been
// kept until it was started (or killed), and nobody listens to us any more.
bool execute_plan(ControlChannel& channel, const ExecuteRequest& request, PhaseRecorder& timings,
                  Janitor* keeper = nullptr);

}  // namespace stasis
