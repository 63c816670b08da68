// Children that have ended and that nobody has waited for, with their exit statuses; one is a leader of others.
#include "target.h"

int main(void) {
  pid_t exited = MUST(fork());
  if (exited == 0) _exit(42);
  pid_t killed = MUST(fork());
  if (killed == 0) {
    signal(SIGTERM, SIG_DFL);
    raise(SIGTERM);
  }
  pid_t leader = MUST(fork());
  if (leader == 0) MUST(setpgid(0, 0)), _exit(0);
  siginfo_t info;
  MUST(waitid(P_PID, exited, &info, WEXITED | WNOWAIT));
  MUST(waitid(P_PID, killed, &info, WEXITED | WNOWAIT));
  MUST(waitid(P_PID, leader, &info, WEXITED | WNOWAIT));

  wait_for_check();

  int status;
  CHECK(MUST(waitpid(exited, &status, WNOHANG)) == exited, "the first zombie has gone");
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42, "status %#x, was exit 42", status);
  CHECK(MUST(waitpid(killed, &status, WNOHANG)) == killed, "the second zombie has gone");
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM, "status %#x, was killed by SIGTERM", status);
  CHECK(MUST(waitpid(-leader, &status, WNOHANG)) == leader && status == 0, "the third zombie has gone");
  CHECK(waitpid(-1, &status, WNOHANG) == -1 && errno == ECHILD, "there are more children");
  return ok();
}
