// What every capture step is given. A step reads from the frozen tree and fills
// its part of the data; it leaves nothing behind in the target.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <vector>

#include "base/deadline.h"
#include "capture/capture_data.h"
#include "capture/twin_reaper.h"
#include "trace/frozen_tree.h"

namespace stasis {

class ConnectionCapture;
class MemoryTracking;

// Tasks with many mappings (host pids), and where files and shared memory were mapped in those with very many.
using KnownMappings = std::map<pid_t, std::vector<Vma>>;
using KcmpOrders = std::map<int, std::vector<pid_t>>;  // by KCMP_*

struct CaptureContext {
  FrozenTree& tree;
  const CaptureRequest& request;
  CaptureData& data;
  Deadline deadline;
  std::function<void()> check_abort;  // throws "aborted" if the other side has gone or said so
  MemoryTracking& tracking;
  TwinReaper* reaper = nullptr;  // none: no twins
  // Tasks whose smaps are read inside the window, because an earlier attempt has
  // shown that their twins tell too little (host pids).
  std::set<pid_t> read_in_window;
  KcmpOrders kcmp_orders;
  KnownMappings many_mappings;  // as it was before the freeze
  ConnectionCapture* connections = nullptr;
};

}  // namespace stasis
