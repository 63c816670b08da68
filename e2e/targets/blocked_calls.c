// Threads that wait inside system calls: each wakes up for the right reason and with the right result.
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>

#include "target.h"

static int read_end[2], poll_end[2], select_end[2], epoll_end[2], counter;
static uint32_t word;
static pid_t child;
static volatile int done[8];

static void* in_read(void* unused) {
  char text[8];
  ssize_t got = read(read_end[0], text, sizeof text);
  CHECK(got == 4 && memcmp(text, "wake", 4) == 0, "read: %zd, %s", got, strerror(errno));
  done[0] = 1;
  return unused;
}
static void* in_poll(void* unused) {
  struct pollfd one = {poll_end[0], POLLIN, 0};
  int got = poll(&one, 1, -1);
  CHECK(got == 1 && one.revents == POLLIN, "poll: %d, %s", got, strerror(errno));
  done[1] = 1;
  return unused;
}
static void* in_select(void* unused) {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(select_end[0], &set);
  struct timeval long_time = {3000, 0};
  int got = select(select_end[0] + 1, &set, NULL, NULL, &long_time);
  CHECK(got == 1, "select: %d, %s", got, strerror(errno));
  done[2] = 1;
  return unused;
}
static void* in_epoll(void* unused) {
  int epoll = MUST(epoll_create1(0));
  struct epoll_event event = {.events = EPOLLIN, .data.u32 = 5};
  MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, epoll_end[0], &event));
  // epoll_wait is never restarted by the kernel; a signal would show as EINTR, a checkpoint may as well.
  int got;
  while ((got = epoll_wait(epoll, &event, 1, -1)) == -1 && errno == EINTR) {
  }
  CHECK(got == 1 && event.data.u32 == 5, "epoll_wait: %d, %s", got, strerror(errno));
  done[3] = 1;
  return unused;
}
static void* in_futex(void* unused) {
  while (__atomic_load_n(&word, __ATOMIC_SEQ_CST) == 0) syscall(SYS_futex, &word, FUTEX_WAIT, 0, NULL, NULL, 0);
  done[4] = 1;
  return unused;
}
static void* in_wait(void* unused) {
  int status;
  CHECK(MUST(waitpid(child, &status, 0)) == child && WEXITSTATUS(status) == 3, "waitpid: %#x", status);
  done[5] = 1;
  return unused;
}
static void* in_eventfd(void* unused) {
  eventfd_t value;
  CHECK(eventfd_read(counter, &value) == 0 && value == 8, "eventfd: %s", strerror(errno));
  done[6] = 1;
  return unused;
}
static void* in_sleep(void* unused) {
  struct timespec left = {1, 0}, start, end;
  clock_gettime(CLOCK_MONOTONIC, &start);
  while (nanosleep(&left, &left) == -1) CHECK(errno == EINTR, "nanosleep: %s", strerror(errno));
  clock_gettime(CLOCK_MONOTONIC, &end);
  CHECK(end.tv_sec - start.tv_sec >= 1 || end.tv_nsec >= start.tv_nsec, "nanosleep returned early");
  done[7] = 1;
  return unused;
}

int main(void) {
  int child_gate[2];
  MUST(pipe(read_end));
  MUST(pipe(poll_end));
  MUST(pipe(select_end));
  MUST(pipe(epoll_end));
  MUST(pipe(child_gate));
  counter = MUST(eventfd(0, 0));
  child = MUST(fork());
  if (child == 0) {
    char byte;
    MUST(read(child_gate[0], &byte, 1));
    _exit(3);
  }
  void* (*calls[])(void*) = {in_read, in_poll, in_select, in_epoll, in_futex, in_wait, in_eventfd, in_sleep};
  pthread_t threads[8];
  for (int i = 0; i < 8; i++) pthread_create(&threads[i], NULL, calls[i], NULL);
  pause_ms(30);

  wait_for_check();

  for (int i = 0; i < 7; i++) CHECK(!done[i], "call %d woke up without a reason", i);
  MUST(write(read_end[1], "wake", 4));
  MUST(write(poll_end[1], "x", 1));
  MUST(write(select_end[1], "x", 1));
  MUST(write(epoll_end[1], "x", 1));
  MUST(write(child_gate[1], "x", 1));
  MUST(eventfd_write(counter, 8));
  __atomic_store_n(&word, 1, __ATOMIC_SEQ_CST);
  syscall(SYS_futex, &word, FUTEX_WAKE, 1, NULL, NULL, 0);
  for (int i = 0; i < 8; i++) {
    for (int wait = 0; wait < 1000 && !done[i]; wait++) pause_ms(5);
    CHECK(done[i], "call %d does not wake up", i);
    pthread_join(threads[i], NULL);
  }
  return ok();
}
