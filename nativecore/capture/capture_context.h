// What every capture step is given. A step reads from the frozen tree and fills
// its part of the data; it leaves nothing behind in the target.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <tuple>

#include "base/deadline.h"
#include "capture/capture_data.h"
#include "trace/frozen_tree.h"

namespace stasis {

struct CaptureContext {
  FrozenTree& tree;
  const CaptureRequest& request;
  CaptureData& data;
  Deadline deadline;
  std::function<void()> check_abort;  // throws "aborted" if the other side has gone or said so
};

}  // namespace stasis
