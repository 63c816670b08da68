// Character devices that every container has, and clocks through the vdso that never run backwards.
#include "target.h"

int main(void) {
  int null = MUST(open("/dev/null", O_RDWR)), zero = MUST(open("/dev/zero", O_RDONLY)),
      full = MUST(open("/dev/full", O_WRONLY));
  int random = MUST(open("/dev/urandom", O_RDONLY | O_CLOEXEC));
  struct timespec monotonic, real, now;
  MUST(clock_gettime(CLOCK_MONOTONIC, &monotonic));
  MUST(clock_gettime(CLOCK_REALTIME, &real));

  wait_for_check();

  char bytes[16];
  memset(bytes, 1, sizeof bytes);
  CHECK(write(null, bytes, 16) == 16 && read(null, bytes, 16) == 0, "/dev/null does not work");
  CHECK(read(zero, bytes, 16) == 16 && bytes[0] == 0 && bytes[15] == 0, "/dev/zero does not work");
  CHECK(write(full, bytes, 16) == -1 && errno == ENOSPC, "/dev/full does not work");
  CHECK(read(random, bytes, 16) == 16, "/dev/urandom does not work");
  MUST(clock_gettime(CLOCK_MONOTONIC, &now));
  CHECK(now.tv_sec >= monotonic.tv_sec && now.tv_sec < monotonic.tv_sec + 600, "CLOCK_MONOTONIC went from %ld to %ld",
        monotonic.tv_sec, now.tv_sec);
  MUST(clock_gettime(CLOCK_REALTIME, &now));
  CHECK(now.tv_sec >= real.tv_sec, "CLOCK_REALTIME went backwards");
  return ok();
}
