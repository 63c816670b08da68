// Watches the files that it is given, reads nothing until it is told to, then prints what it has been told.
#include <sys/inotify.h>

#include "target.h"

int main(int count, char** paths) {
  int instance = MUST(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  for (int i = 1; i < count; i++) MUST(inotify_add_watch(instance, paths[i], IN_MODIFY | IN_ATTRIB | IN_CREATE));

  wait_for_check();

  char buffer[4096] __attribute__((aligned(8)));
  for (ssize_t length; (length = read(instance, buffer, sizeof buffer)) > 0;) {
    for (char* at = buffer; at < buffer + length;) {
      struct inotify_event* event = (struct inotify_event*)at;
      printf("EVENT %d %#x\n", event->wd, event->mask);
      at += sizeof *event + event->len;
    }
  }
  CHECK(errno == EAGAIN, "read: %s", strerror(errno));
  return ok();
}
