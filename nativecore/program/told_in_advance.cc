// Loaded before the C library into a program that an image is made of, and in
// the image: it tells the program what holds for each start from it.
//
// No io_uring: libuv gathers its work in rings that are shared with the kernel,
// which no image can hold, unless the kernel says that it has none. Not by a
// filter of seccomp(2): what the program traces while it is rehearsed must be
// free of it.
//
// A monotonic clock that has just begun: node ends itself when the clock is
// behind the one that it began with, as it is for whoever starts from an image
// that is older than the last boot. From the start on it is the kernel's.
#include <dlfcn.h>
#include <sys/syscall.h>
#include <time.h>

#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdlib>

extern "C" {
// What is taken off; binding/program_start.cc sets it to 0.
int64_t stasis_clock_begin_ns = 0;
}

namespace {

constexpr int64_t kSecondNs = 1'000'000'000;

int (*real_clock)(clockid_t, timespec*) = nullptr;

// For this program, and none that it starts.
[[gnu::constructor]] void begin() {
  ::unsetenv("LD_PRELOAD");
  real_clock = reinterpret_cast<decltype(real_clock)>(::dlsym(RTLD_NEXT, "clock_gettime"));
  timespec now{};
  if (real_clock != nullptr && real_clock(CLOCK_MONOTONIC, &now) == 0)
    stasis_clock_begin_ns = now.tv_sec * kSecondNs + now.tv_nsec;
}

}  // namespace

// syscall(2) of the C library, for whoever calls it by name.
extern "C" long syscall(long number, ...) noexcept {
  if (number == SYS_io_uring_setup) {
    errno = ENOSYS;
    return -1;
  }
  va_list list;
  va_start(list, number);
  long words[6];
  for (long& word : words) word = va_arg(list, long);
  va_end(list);
  register long r10 asm("r10") = words[3];
  register long r8 asm("r8") = words[4];
  register long r9 asm("r9") = words[5];
  long result;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(number), "D"(words[0]), "S"(words[1]), "d"(words[2]), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  if (result < 0 && result >= -4095) {
    errno = static_cast<int>(-result);
    return -1;
  }
  return result;
}

extern "C" int clock_gettime(clockid_t clock, timespec* time) noexcept {
  // Before our constructor: somebody else's.
  const int result =
      real_clock != nullptr ? real_clock(clock, time) : static_cast<int>(syscall(SYS_clock_gettime, clock, time));
  if (result == 0 && (clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_COARSE)) {
    // The coarse clock can be behind the moment of our beginning.
    const int64_t behind = time->tv_sec * kSecondNs + time->tv_nsec - stasis_clock_begin_ns;
    const int64_t shown = behind > 0 ? behind : 0;
    time->tv_sec = shown / kSecondNs;
    time->tv_nsec = shown % kSecondNs;
  }
  return result;
}
