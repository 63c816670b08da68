// POSIX timers: ids with gaps, armed and idle ones, signals with values, several clocks.
#include "target.h"

// The C library's timer_t is a pointer for some kinds; the kernel's ids are what has to survive.
static int create(clockid_t clock, int notify, int signal, int value) {
  struct sigevent event = {.sigev_notify = notify, .sigev_signo = signal, .sigev_value.sival_int = value};
  int id = -1;
  MUST(syscall(SYS_timer_create, clock, &event, &id));
  return id;
}

static volatile sig_atomic_t last_value, count;
static void on_timer(int signal, siginfo_t* info, void* context) {
  (void)signal, (void)context;
  last_value = info->si_value.sival_int;
  count++;
}

int main(void) {
  struct sigaction action = {.sa_sigaction = on_timer, .sa_flags = SA_SIGINFO | SA_RESTART};
  MUST(sigaction(SIGRTMIN + 3, &action, NULL));
  int gap = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 3, 1);
  int ticking = create(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 3, 4711);
  int far = create(CLOCK_REALTIME, SIGEV_NONE, 0, 0);
  int idle = create(CLOCK_BOOTTIME, SIGEV_SIGNAL, SIGUSR1, 5);
  MUST(syscall(SYS_timer_delete, gap));
  struct itimerspec often = {{0, 15000000}, {0, 15000000}}, later = {{7, 0}, {2000, 0}}, left;
  MUST(syscall(SYS_timer_settime, ticking, 0, &often, NULL));
  MUST(syscall(SYS_timer_settime, far, 0, &later, NULL));

  wait_for_check();

  int before = count;
  for (int i = 0; i < 500 && count < before + 5; i++) pause_ms(10);
  CHECK(count >= before + 5, "the ticking timer has stopped");
  CHECK(last_value == 4711, "its signal carries %d", last_value);
  MUST(syscall(SYS_timer_gettime, far, &left));
  CHECK(left.it_interval.tv_sec == 7 && left.it_value.tv_sec > 1900 && left.it_value.tv_sec <= 2000,
        "the far timer has %ld s left, interval %ld s", (long)left.it_value.tv_sec, (long)left.it_interval.tv_sec);
  MUST(syscall(SYS_timer_gettime, idle, &left));
  CHECK(left.it_value.tv_sec == 0 && left.it_value.tv_nsec == 0, "the idle timer is armed");
  CHECK(syscall(SYS_timer_gettime, gap, &left) == -1 && errno == EINVAL, "the deleted timer is there");
  return ok();
}
