// Native timestamps per phase, for capture.proto Timing: recorded from the
// start, so that every run says where its time went.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/deadline.h"

namespace stasis {

struct TimedPhase {
  std::string phase;
  uint64_t start_ns = 0;
  uint64_t end_ns = 0;  // 0 while it runs
};

class PhaseRecorder {
 public:
  // Ends the phase that runs, if any, and starts another.
  void enter(std::string phase) {
    const uint64_t now = monotonic_now_ns();
    end_running(now);
    phases_.push_back({std::move(phase), now, 0});
  }
  void finish() { end_running(monotonic_now_ns()); }
  // A span that overlaps others ("frozen").
  void add(std::string phase, uint64_t start_ns, uint64_t end_ns) {
    phases_.insert(phases_.end() - (running() ? 1 : 0), TimedPhase{std::move(phase), start_ns, end_ns});
  }
  // The name of the phase that runs; empty if none does.
  std::string current() const { return running() ? phases_.back().phase : std::string(); }
  const std::vector<TimedPhase>& phases() const { return phases_; }

 private:
  bool running() const { return !phases_.empty() && phases_.back().end_ns == 0; }
  void end_running(uint64_t now) {
    if (running()) phases_.back().end_ns = now;
  }
  std::vector<TimedPhase> phases_;
};

}  // namespace stasis
