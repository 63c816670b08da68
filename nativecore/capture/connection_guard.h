// A process that outlives the core and puts right what its death leaves: TCP
// sockets of the target in repair mode, in which they neither take nor send
// anything. It has copies of them, of the sockets that the locks belong to, and
// of the tree's pidfds.
//
// Undo: dismiss().
// If we die here: it sees the end of its stream when our descriptors are closed,
// which is before the kernel detaches our tracees (do_exit: exit_files and task
// work, then exit_notify), and takes the sockets out of repair mode, at a higher
// priority than the target's; the locks end with it. A target that ran a moment
// earlier would find EINVAL in send or EPERM in recv. Once told that the tree ends, it ends it instead.
#pragma once

#include <sys/types.h>

#include <functional>
#include <vector>

#include "base/deadline.h"
#include "base/unique_fd.h"

namespace stasis {

class ConnectionGuard {
 public:
  struct Duties {
    std::function<void()> put_right;  // what to do if we die while the tree is to live
    std::function<void()> after_end;  // what to do when it has ended
    std::vector<int> pidfds;          // of the tree, init first
    std::vector<int> descriptors;     // what both functions need
  };
  // Precondition: no other thread of ours runs, so that the child may allocate, and our death is one death.
  // Returns when it looks out for our death.
  ConnectionGuard(const Duties& duties, const Deadline& deadline);
  ~ConnectionGuard();
  ConnectionGuard(const ConnectionGuard&) = delete;

  // From here on the tree ends, whoever of the two of us lives.
  void tell_end();
  // Does not wait.
  void dismiss() noexcept;

 private:
  void wait_until_ready(const Deadline& deadline);

  UniqueFd orders_;
  pid_t host_pid_ = -1;
};

}  // namespace stasis
