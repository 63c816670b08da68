// Event counters: a plain one, an empty one, one as a semaphore.
#include <sys/eventfd.h>

#include "target.h"

int main(void) {
  int plain = MUST(eventfd(7, EFD_NONBLOCK));
  int empty = MUST(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  int semaphore = MUST(eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK));
  MUST(eventfd_write(plain, 35));
  MUST(eventfd_write(semaphore, 2));

  wait_for_check();

  eventfd_t value;
  MUST(eventfd_read(plain, &value));
  CHECK(value == 42, "plain holds %lu", value);
  CHECK(eventfd_read(empty, &value) == -1 && errno == EAGAIN, "empty is not empty");
  CHECK((fcntl(empty, F_GETFD) & FD_CLOEXEC) != 0, "close-on-exec is lost");
  for (int i = 0; i < 2; i++) {
    MUST(eventfd_read(semaphore, &value));
    CHECK(value == 1, "the semaphore gave %lu", value);
  }
  CHECK(eventfd_read(semaphore, &value) == -1 && errno == EAGAIN, "the semaphore gave a third time");
  return ok();
}
