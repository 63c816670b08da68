// What has changed in the memory of a tree since an earlier capture of it.
//
// Each process has a userfaultfd with asynchronous write protection
// (UFFD_FEATURE_WP_ASYNC, Linux 6.7): the kernel notes the first write to a page
// by itself, nobody is stopped, nobody answers. The descriptors lie with a
// keeper, a process that does nothing but hold them until the tree has ended.
//
//   a keeper lives under a token  <=>  what is written since the capture of that
//                                      token is marked in the page tables
//
// so the old keeper ends before anything is protected anew, and the new one
// stays only when the images of its capture are committed.
//
// Undo: without keep() the new keeper ends when we do, and the kernel forgets.
// If we die here: the same. If the keeper dies: the next capture finds none, and
// compares memory with what the parent holds (parent_pages.h).
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "capture/capture_context.h"
#include "capture/page_runs.h"

namespace stasis {

class MemoryTracking {
 public:
  // Looks for the keeper of an earlier capture; before the freeze.
  explicit MemoryTracking(const CaptureRequest& request);
  MemoryTracking(const MemoryTracking&) = delete;
  MemoryTracking& operator=(const MemoryTracking&) = delete;
  ~MemoryTracking();

  // --- while the tree is stopped

  // Whether the parasite is to make a userfaultfd in this process.
  bool wants_uffd(const CapturedTask& task) const;
  void take_uffd(CaptureContext& context, const CapturedTask& task, sys::Try<UniqueFd> uffd);
  // What has been written to since the parent. Several tasks at once, each by one thread.
  void find_changes(const CapturedTask& task, const ProcDir& proc);
  // From here on changes are noted for the next capture, and those before are forgotten.
  void protect(CaptureContext& context);

  // --- at any time after find_changes()

  // Null: nothing is known, everything counts as changed.
  const std::vector<PageRun>* changes_of(pid_t host_pid) const;

  // --- when the tree runs again

  // Starts the keeper; false if there is nothing to keep.
  // Preconditions: this process has one thread.
  bool start_keeper();
  // The images are committed.
  void keep();

 private:
  struct Tracked {
    uint64_t start_ticks = 0;
    UniqueFd uffd;  // invalid: it could not be had
    bool known_since_parent = false;
    std::optional<std::vector<PageRun>> changes;
  };
  void find_keeper();
  void take_over(int keeper_pidfd);
  void end_old_keeper();
  static int protect_task(const CapturedTask& task, const ProcDir& proc, int uffd);

  const CaptureRequest& request_;
  std::map<pid_t, Tracked> tasks_;
  UniqueFd old_keeper_;  // pidfd
  UniqueFd keep_;        // our end of the new keeper's orders
  bool protected_ = false;
};

// `stasis-core keep ROOT_HOST_PID ROOT_START_TICKS TOKEN COUNT`, with descriptors in place.
int run_keep_command(int argc, char** argv);

}  // namespace stasis
