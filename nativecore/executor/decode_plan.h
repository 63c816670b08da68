// Reads schema/plan.proto. Only form is checked here; meaning in validate_plan.h.
#pragma once

#include <string_view>
#include <vector>

#include "executor/plan_model.h"

namespace stasis {

// Throws "bad_request" if the message is malformed. The result points into `message`.
ExecuteRequest decode_execute_request(std::string_view message);

// The undo list alone, from a message whose rest may be unreadable: what has
// been prepared for a restore is removed even if its plan cannot be decoded.
std::vector<UndoAction> decode_undo_actions(std::string_view message) noexcept;

}  // namespace stasis
