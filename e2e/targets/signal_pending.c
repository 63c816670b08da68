// Signals that wait: for the process and for a thread, in order, real-time ones with their values.
#include "target.h"

static void expect(const sigset_t* set, int signal, int value, int from_queue) {
  siginfo_t info;
  struct timespec none = {0, 0};
  int got = sigtimedwait(set, &info, &none);
  CHECK(got == signal, "got signal %d, wanted %d", got, signal);
  if (!from_queue) return;
  CHECK(info.si_code == SI_QUEUE && info.si_value.sival_int == value && info.si_pid == getpid(),
        "signal %d: code %d, value %d, from %d", signal, info.si_code, info.si_value.sival_int, info.si_pid);
}

int main(void) {
  sigset_t all, process_wide, rest;
  sigfillset(&all);
  MUST(sigprocmask(SIG_SETMASK, &all, NULL));
  for (int i = 1; i <= 3; i++) MUST(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = i}));
  MUST(kill(getpid(), SIGUSR1));
  MUST(syscall(SYS_tgkill, getpid(), gettid(), SIGUSR2));
  MUST(sigqueue(getpid(), SIGCHLD, (union sigval){.sival_int = 99}));

  wait_for_check();

  char* status = read_file("/proc/self/status");
  char *thread = status_line(status, "SigPnd"), *shared = status_line(status, "ShdPnd");
  CHECK((strtoull(thread, NULL, 16) & (1ull << (SIGUSR2 - 1))) != 0, "the thread's signal moved: %s", thread);
  CHECK((strtoull(shared, NULL, 16) & (1ull << (SIGUSR1 - 1))) != 0, "the process's signal moved: %s", shared);
  sigemptyset(&process_wide);
  sigaddset(&process_wide, SIGRTMIN + 5);
  for (int i = 1; i <= 3; i++) expect(&process_wide, SIGRTMIN + 5, i, 1);
  sigemptyset(&rest);
  sigaddset(&rest, SIGUSR2);
  expect(&rest, SIGUSR2, 0, 0);
  sigaddset(&rest, SIGUSR1);
  expect(&rest, SIGUSR1, 0, 0);
  sigaddset(&rest, SIGCHLD);
  expect(&rest, SIGCHLD, 99, 1);
  siginfo_t info;
  struct timespec none = {0, 0};
  int more = sigtimedwait(&all, &info, &none);
  CHECK(more == -1 && errno == EAGAIN, "signal %d too much", more);
  return ok();
}
