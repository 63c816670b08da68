// One moment on CLOCK_MONOTONIC by which something has to be over.
#pragma once

#include <poll.h>
#include <time.h>

#include <cerrno>
#include <cstdint>

#include "base/native_error.h"

namespace stasis {

inline uint64_t monotonic_now_ns() {
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

class Deadline {
 public:
  static Deadline in_ms(uint64_t milliseconds) { return Deadline(monotonic_now_ns() + milliseconds * 1'000'000u); }
  static Deadline never() { return Deadline(UINT64_MAX); }

  bool expired() const { return monotonic_now_ns() >= at_ns_; }
  uint64_t at_ns() const { return at_ns_; }
  uint64_t remaining_ns() const {
    const uint64_t now = monotonic_now_ns();
    return now >= at_ns_ ? 0 : at_ns_ - now;
  }
  // For poll(2): rounded up, so that a caller who waits for it finds it expired; -1 for never.
  int remaining_ms() const {
    if (at_ns_ == UINT64_MAX) return -1;
    const uint64_t milliseconds = (remaining_ns() + 999'999u) / 1'000'000u;
    return milliseconds > INT32_MAX ? INT32_MAX : static_cast<int>(milliseconds);
  }
  // `awaited` says what did not happen in time, with what was seen instead.
  void check(const char* awaited) const {
    if (expired()) throw NativeError("deadline", awaited);
  }

 private:
  explicit Deadline(uint64_t at_ns) : at_ns_(at_ns) {}
  uint64_t at_ns_;
};

// Until there is something to read, or the process behind a pidfd has ended.
// False: the deadline has come.
inline bool wait_readable(int fd, const Deadline& deadline) {
  pollfd awaited{fd, POLLIN, 0};
  for (;;) {
    const int ready = ::poll(&awaited, 1, deadline.remaining_ms());
    if (ready > 0) return true;
    if (ready == 0 || errno != EINTR) return false;
  }
}

}  // namespace stasis
