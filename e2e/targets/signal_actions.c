// Signal actions with their flags and masks, the blocked mask, ignored signals, the alternate stack in use.
#include "target.h"

static volatile sig_atomic_t blocked_inside, on_other_stack;
static char stack_memory[65536] __attribute__((aligned(16)));

static void on_first(int signal) {
  (void)signal;
  sigset_t now;
  sigprocmask(SIG_BLOCK, NULL, &now);
  blocked_inside = sigismember(&now, SIGUSR2);
  char here;
  on_other_stack = &here >= stack_memory && &here < stack_memory + sizeof stack_memory;
}

int main(void) {
  stack_t stack = {.ss_sp = stack_memory, .ss_size = sizeof stack_memory};
  MUST(sigaltstack(&stack, NULL));
  struct sigaction first = {.sa_handler = on_first, .sa_flags = SA_ONSTACK | SA_NODEFER};
  sigaddset(&first.sa_mask, SIGUSR2);
  MUST(sigaction(SIGUSR1, &first, NULL));
  signal(SIGHUP, SIG_IGN);
  struct sigaction once = {.sa_handler = on_first, .sa_flags = (int)SA_RESETHAND};
  MUST(sigaction(SIGRTMIN + 9, &once, NULL));
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGWINCH);
  sigaddset(&blocked, SIGRTMAX);
  MUST(sigprocmask(SIG_SETMASK, &blocked, NULL));
  char* before = read_file("/proc/self/status");

  wait_for_check();

  char* after = read_file("/proc/self/status");
  const char* lines[] = {"SigBlk", "SigIgn", "SigCgt"};
  for (int i = 0; i < 3; i++) {
    char *was = status_line(before, lines[i]), *is = status_line(after, lines[i]);
    CHECK(strcmp(was, is) == 0, "%s is %s, was %s", lines[i], is, was);
  }
  raise(SIGUSR1);
  CHECK(blocked_inside, "the handler's mask is lost");
  CHECK(on_other_stack, "the handler runs on the wrong stack");
  raise(SIGHUP);
  struct sigaction now;
  MUST(sigaction(SIGRTMIN + 9, NULL, &now));
  CHECK(now.sa_handler == on_first && (now.sa_flags & (int)SA_RESETHAND) != 0, "a one-time handler has changed");
  raise(SIGRTMIN + 9);
  MUST(sigaction(SIGRTMIN + 9, NULL, &now));
  CHECK(now.sa_handler == SIG_DFL, "a one-time handler stays");
  return ok();
}
