// How far the copying of memory has come, told to the other side now and then.
// Never blocks and never fails; what cannot be sent is left out. Any thread may
// count, the thread that owns the channel tells.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "base/control_channel.h"

namespace stasis {

class Progress {
 public:
  // `phase` is the name in the list of timings.
  Progress(ControlChannel& channel, const char* phase);
  void expect(uint64_t bytes) { total_bytes_ += bytes; }
  void add(uint64_t bytes) { done_bytes_ += bytes; }
  // Tells, unless it has told a moment ago or the work has only begun.
  void tell();

 private:
  ControlChannel& channel_;
  const char* phase_;
  std::atomic<uint64_t> done_bytes_ = 0;
  std::atomic<uint64_t> total_bytes_ = 0;
  uint64_t next_ns_;
};

}  // namespace stasis
