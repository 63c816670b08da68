// A container that was found paused by its cgroup freezer (v1 freezer.state or
// v2 cgroup.freeze). Frozen tasks neither reach a ptrace stop (v1) nor run the
// parasite, so the freezer is opened while we work and closed again before the
// tasks are let go. A freezer is never used on a container that runs.
//
// Undo: refreeze().
// If we die here: the watcher, a process that waits for our end, freezes the
// container again.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/unique_fd.h"

namespace stasis {

class PausedContainer {
 public:
  // Empty `freezer_file`: there is none, and all operations do nothing.
  explicit PausedContainer(std::string freezer_file);
  PausedContainer(const PausedContainer&) = delete;
  PausedContainer& operator=(const PausedContainer&) = delete;
  ~PausedContainer();

  void thaw();
  void refreeze() noexcept;
  // The tree is to die: nothing is frozen again.
  void forget();

 private:
  const char* word(bool frozen) const;
  void start_watcher();
  void end_watcher();
  std::string freezer_file_;
  bool is_v2_ = false;
  bool thawed_ = false;
  pid_t watcher_ = 0;
  UniqueFd watcher_lifeline_;
};

}  // namespace stasis
