// Takes back what was prepared for a restore that did not commit. Used by the
// coordinator when it rolls back and by the janitor when the coordinator has
// been killed; doing it twice does no harm.
#pragma once

#include <vector>

#include "base/native_error.h"
#include "executor/plan_model.h"

namespace stasis {

// Performs all actions in order; a failing one does not keep the others from
// being tried. What is already gone
// counts as done, and so does a directory whose place another one has taken.
std::vector<NativeError> perform_undo(const std::vector<UndoAction>& actions);

}  // namespace stasis
