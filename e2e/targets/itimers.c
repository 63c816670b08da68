// Interval timers: each goes on with what was left, and with its interval.
#include <sys/time.h>

#include "target.h"

static volatile sig_atomic_t alarms, virtuals;
static void on_alarm(int signal) { signal == SIGALRM ? alarms++ : virtuals++; }

int main(void) {
  signal(SIGALRM, on_alarm);
  signal(SIGVTALRM, on_alarm);
  struct itimerval fast = {{0, 20000}, {0, 20000}}, cpu = {{0, 10000}, {0, 10000}}, far = {{500, 0}, {1000, 0}};
  MUST(setitimer(ITIMER_REAL, &fast, NULL));
  MUST(setitimer(ITIMER_VIRTUAL, &cpu, NULL));
  MUST(setitimer(ITIMER_PROF, &far, NULL));

  wait_for_check();

  int before = alarms;
  for (int i = 0; i < 500 && alarms < before + 5; i++) pause_ms(10);
  CHECK(alarms >= before + 5, "ITIMER_REAL does not tick any more");
  before = virtuals;
  time_t deadline = time(NULL) + 10;
  while (virtuals < before + 3 && time(NULL) < deadline) {
  }
  CHECK(virtuals >= before + 3, "ITIMER_VIRTUAL does not tick any more");
  struct itimerval left;
  MUST(getitimer(ITIMER_PROF, &left));
  CHECK(left.it_interval.tv_sec == 500, "ITIMER_PROF's interval is %ld s", (long)left.it_interval.tv_sec);
  CHECK(left.it_value.tv_sec > 900 && left.it_value.tv_sec <= 1000, "ITIMER_PROF has %ld s left",
        (long)left.it_value.tv_sec);
  MUST(getitimer(ITIMER_REAL, &left));
  CHECK(left.it_interval.tv_usec == 20000, "ITIMER_REAL's interval is %ld us", (long)left.it_interval.tv_usec);
  return ok();
}
