// An epoll instance: registrations with their data, edge- and level-triggered, one-shot ones, an instance in an
// instance.
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "target.h"

static void add(int epoll, int fd, uint32_t events, uint64_t data) {
  struct epoll_event event = {.events = events, .data.u64 = data};
  MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
}

int main(void) {
  int outer = MUST(epoll_create1(EPOLL_CLOEXEC));
  int inner = MUST(epoll_create1(0));
  int counter = MUST(eventfd(0, EFD_NONBLOCK));
  int pipe_ends[2];
  MUST(pipe(pipe_ends));
  int moved = MUST(dup2(pipe_ends[0], 500));
  add(outer, counter, EPOLLIN, 0x1122334455667788);
  add(outer, moved, EPOLLIN | EPOLLET, 2);
  add(inner, pipe_ends[1], EPOLLOUT | EPOLLONESHOT, 3);
  add(outer, inner, EPOLLIN, 4);

  wait_for_check();

  struct epoll_event events[8];
  CHECK(MUST(epoll_wait(outer, events, 8, 1000)) == 1 && events[0].data.u64 == 4, "the inner instance is not ready");
  CHECK(MUST(epoll_wait(inner, events, 8, 0)) == 1 && events[0].data.u64 == 3, "the pipe's end is not writable");
  CHECK(MUST(epoll_wait(inner, events, 8, 0)) == 0, "a one-shot registration came twice");
  MUST(eventfd_write(counter, 1));
  MUST(write(pipe_ends[1], "x", 1));
  int count = MUST(epoll_wait(outer, events, 8, 1000));
  CHECK(count == 2, "%d events", count);
  for (int i = 0; i < 2; i++) {
    CHECK(events[i].data.u64 == 2 || events[i].data.u64 == 0x1122334455667788, "data %#lx", events[i].data.u64);
  }
  count = MUST(epoll_wait(outer, events, 8, 0));
  CHECK(count == 1 && events[0].data.u64 == 0x1122334455667788, "the edge-triggered one came again");
  CHECK((fcntl(outer, F_GETFD) & FD_CLOEXEC) != 0, "close-on-exec is lost");
  return ok();
}
