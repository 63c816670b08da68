#include "capture/paused_container.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>

#include "base/log_ring.h"
#include "base/native_error.h"
#include "base/sys.h"

namespace stasis {

PausedContainer::PausedContainer(std::string freezer_file) : freezer_file_(std::move(freezer_file)) {
  is_v2_ = freezer_file_.ends_with("cgroup.freeze");
}

PausedContainer::~PausedContainer() { refreeze(); }

const char* PausedContainer::word(bool frozen) const {
  if (is_v2_) return frozen ? "1" : "0";
  return frozen ? "FROZEN" : "THAWED";
}

void PausedContainer::thaw() {
  if (freezer_file_.empty() || thawed_) return;
  start_watcher();
  sys::write_file(AT_FDCWD, freezer_file_.c_str(), word(false));
  thawed_ = true;
}

void PausedContainer::refreeze() noexcept {
  if (!thawed_) return;
  thawed_ = false;
  const sys::Try<bool> written = sys::try_write_file(AT_FDCWD, freezer_file_.c_str(), word(true));
  if (!written.ok()) log_line("cannot pause the container again: errno %d", written.error);
  end_watcher();
}

void PausedContainer::forget() {
  thawed_ = false;
  end_watcher();
}

// Holds nothing of ours but the reading end of a pipe: our control socket must
// report end of file when we die.
void PausedContainer::start_watcher() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) < 0) throw NativeError::from_errno("pipe2", errno);
  UniqueFd read_end(ends[0]);
  watcher_lifeline_ = UniqueFd(ends[1]);
  const UniqueFd freezer = sys::openat(AT_FDCWD, freezer_file_.c_str(), O_WRONLY);
  const char* const frozen = word(true);
  const size_t length = std::strlen(frozen);
  // Single-threaded here or not: the child makes system calls only.
  watcher_ = ::fork();
  if (watcher_ < 0) throw NativeError::from_errno("fork", errno);
  if (watcher_ > 0) return;
  ::setsid();  // a signal to our group is not for it
  ::dup2(read_end.borrow(), 0);
  ::dup2(freezer.borrow(), 1);
  sys::try_syscall(SYS_close_range, 2, UINT_MAX, 0);
  char byte;
  ssize_t count;
  do {
    count = ::read(0, &byte, 1);
  } while (count < 0 && errno == EINTR);
  if (count == 0 && ::write(1, frozen, length) < 0) ::_exit(1);
  ::_exit(0);
}

void PausedContainer::end_watcher() {
  if (watcher_ <= 0) return;
  const char done = 'k';
  if (::write(watcher_lifeline_.borrow(), &done, 1) < 0) ::kill(watcher_, SIGKILL);
  int status = 0;
  sys::try_waitpid(watcher_, &status, 0);
  watcher_ = 0;
  watcher_lifeline_.reset();
}

}  // namespace stasis
