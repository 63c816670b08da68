// The named pipe on which a restored, parked container waits to be started:
// runc and crun call it exec.fifo, and find their own waiting containers by it.
// runc's start reads it until the end and wants to have read something; crun's
// writes to it. Both wait for the other side in open(2). We hold both sides, so
// neither waits there, and hear of the open through inotify.
#pragma once

#include <string>

#include "base/unique_fd.h"

namespace stasis {

class StartDoor {
 public:
  // Makes the pipe. Who removes it: the undo actions of the restore, or whoever starts or deletes the container.
  explicit StartDoor(const std::string& path);

  // For poll(2): readable when there may be something new.
  int borrow() const { return opened_.borrow(); }
  bool has_been_opened() const;
  // What is written to it ends the wait of who has opened it.
  int borrow_pipe() const { return pipe_.borrow(); }

 private:
  UniqueFd pipe_;
  UniqueFd opened_;  // inotify
};

}  // namespace stasis
