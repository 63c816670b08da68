// The restore sequence.
#pragma once

#include "base/control_channel.h"
#include "base/timing.h"
#include "executor/plan_model.h"

namespace stasis {

// From a request to a running tree. Precondition: this process has one thread.
// Postconditions: on return the tree runs and owes us nothing; on an exception
// no task of it is left and the request's undo actions have been performed.
void execute_plan(ControlChannel& channel, const ExecuteRequest& request, PhaseRecorder& timings);

}  // namespace stasis
