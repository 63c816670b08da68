// Two things at once that no checkpoint can carry: both have to be named.
#include <linux/perf_event.h>
#include <sys/inotify.h>

#include "target.h"

int main(void) {
  struct {
    uint32_t entries[30];
  } parameters = {0};
  int ring = (int)syscall(425 /* io_uring_setup */, 4, &parameters);
  int faults = (int)syscall(SYS_userfaultfd, 1 /* UFFD_USER_MODE_ONLY */ | O_CLOEXEC);
  printf("io_uring %d userfaultfd %d\n", ring, faults);
  wait_for_check();
  return ok();
}
