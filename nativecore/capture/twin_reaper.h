// The reaper: a process beside the core that lets targets take note of the end
// of their twins. A dead twin stays in its parent's list of children until that
// has waited for it; the target does not know of it, so it is visited for a
// moment (main thread stopped, one wait4(2), released). Beside the core,
// because that must happen when the core has been killed, too.
//
// Undo: the visit itself is undone by leaving its scope.
// If the reaper dies as well: a dead process without memory remains in the
// target's list of children, and ends with the target.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "base/deadline.h"
#include "base/unique_fd.h"

namespace stasis {

class TwinReaper {
 public:
  // Preconditions: this process has one thread.
  TwinReaper();
  TwinReaper(const TwinReaper&) = delete;
  TwinReaper& operator=(const TwinReaper&) = delete;
  // Finishes, if that has not been done.
  ~TwinReaper();

  // Before the fork: this process may get a twin.
  void announce(pid_t host_pid, uint64_t start_ticks);
  // After it.
  void tell(pid_t host_pid, uint64_t start_ticks, pid_t twin_ns_pid);
  // Preconditions: all twins are dead, nothing of their parents is traced by us.
  // Postconditions: the visits have been made, or (false) still are when the
  // deadline has come: a target that was frozen meanwhile is visited when it is thawed.
  bool finish(const Deadline& deadline) noexcept;

 private:
  pid_t host_pid_ = 0;
  UniqueFd pidfd_;
  UniqueFd orders_;
};

}  // namespace stasis
