#include "executor/start_door.h"

#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/native_error.h"
#include "base/sys.h"

namespace stasis {

StartDoor::StartDoor(const std::string& path) {
  if (::mkfifo(path.c_str(), 0600) < 0) throw NativeError::from_errno("mkfifo", errno).with_path(path);
  pipe_ = sys::openat(AT_FDCWD, path.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC);
  // After our own open, which would otherwise be the first event.
  opened_ = UniqueFd(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  if (!opened_.valid()) throw NativeError::from_errno("inotify_init1", errno);
  if (::inotify_add_watch(opened_.borrow(), path.c_str(), IN_OPEN) < 0)
    throw NativeError::from_errno("inotify_add_watch", errno).with_path(path);
}

bool StartDoor::has_been_opened() const {
  alignas(inotify_event) char events[1024];
  const ssize_t length = ::read(opened_.borrow(), events, sizeof events);
  for (ssize_t at = 0; at + static_cast<ssize_t>(sizeof(inotify_event)) <= length;) {
    const auto* event = reinterpret_cast<const inotify_event*>(events + at);
    if (event->mask & IN_OPEN) return true;
    at += static_cast<ssize_t>(sizeof(inotify_event) + event->len);
  }
  return false;
}

}  // namespace stasis
