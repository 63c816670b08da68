// The janitor: a tiny process that outlives us if we are killed. It learns of
// our death by end of file, kills what we have created, takes back what was
// prepared, and exits. It is in a session of its own and holds no descriptor
// but its socket, pidfds and, at the end, the pipe of who waits for the start;
// so nobody waits for it by mistake.
//
// Races, and what closes them:
//   1. We clone the root and are killed before its pidfd is handed over: the
//      root dies by PDEATHSIG; before it has set that, it sees the fail word,
//      which the janitor sets first of all.
//   2. We are killed while threads are being detached: some run already. We are
//      not committed, so the janitor kills their processes.
//   3. We are killed while we roll back: the janitor does it again.
//   4. We are killed together with the process that asks us (the requester),
//      which is in the middle of a mkdir: what it makes appears after the
//      janitor has looked. The janitor therefore looks again when the requester
//      has gone, too; if that lives on, it cleans up by itself.
#pragma once

#include <sys/types.h>

#include <vector>

#include "base/unique_fd.h"
#include "executor/hole.h"
#include "executor/plan_model.h"

namespace stasis {

class Janitor {
 public:
  // Precondition: this process has one thread.
  Janitor(const std::vector<UndoAction>& undo, const Hole& hole);
  // For what is made before there is a tree.
  explicit Janitor(const std::vector<UndoAction>& undo);

  Janitor(const Janitor&) = delete;
  // Unless it has been dismissed, it takes everything back. Reaps it.
  ~Janitor();

  // Hands over a pidfd of a process to be killed.
  void watch(int pidfd);
  // Hands over a pipe into which the janitor writes when it is dismissed: who
  // reads there is answered even if we die right after the dismissal.
  void answer_when_dismissed(int pipe);
  // The tree belongs to itself now, or nothing of it is left: the janitor
  // exits. Nothing may be handed over afterwards.
  void dismiss();
  pid_t host_pid() const { return host_pid_; }

 private:
  Janitor(const std::vector<UndoAction>& undo, const Hole* hole);
  void hand_over(char word, int fd, const char* what);

  UniqueFd socket_;
  pid_t host_pid_ = -1;
};

}  // namespace stasis
