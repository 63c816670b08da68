// Loaded before the C library into a program that an image is made of: libuv
// gathers its work in rings that are shared with the kernel, which no image
// can hold, unless the kernel says that it has none. Not by a filter of
// seccomp(2): what the program traces while it is rehearsed must be free of it.
#include <sys/syscall.h>

#include <cerrno>
#include <cstdarg>
#include <cstdlib>

namespace {

// For this program, and none that it starts.
[[gnu::constructor]] void hide() { ::unsetenv("LD_PRELOAD"); }

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
