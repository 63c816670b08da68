// Resource limits, nice value, scheduling policy, affinity, timer slack; another thread with its own.
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "target.h"

static void describe(char* out) {
  out[0] = 0;
  for (int i = 0; i < RLIM_NLIMITS; i++) {
    struct rlimit limit;
    MUST(getrlimit(i, &limit));
    sprintf(out + strlen(out), "limit %d: %lx %lx\n", i, (long)limit.rlim_cur, (long)limit.rlim_max);
  }
  cpu_set_t set;
  MUST(sched_getaffinity(0, sizeof set, &set));
  sprintf(out + strlen(out), "nice %d policy %d cpus %d slack %d subreaper-independent", getpriority(PRIO_PROCESS, 0),
          sched_getscheduler(0), CPU_COUNT(&set), prctl(PR_GET_TIMERSLACK));
}

static volatile int go, ready;
static void* other(void* unused) {
  struct sched_param none = {0};
  MUST(setpriority(PRIO_PROCESS, (id_t)gettid(), 11));
  MUST(sched_setscheduler(0, SCHED_IDLE, &none));
  char before[4096], after[4096];
  describe(before);
  ready = 1;
  while (!go) pause_ms(2);
  describe(after);
  CHECK(strcmp(before, after) == 0, "thread: now\n%s\nbefore\n%s", after, before);
  return unused;
}

int main(void) {
  struct rlimit files = {100, 512}, core = {0, 4096}, stack;
  MUST(setrlimit(RLIMIT_NOFILE, &files));
  MUST(setrlimit(RLIMIT_CORE, &core));
  MUST(getrlimit(RLIMIT_STACK, &stack));
  stack.rlim_cur = 4 << 20;
  MUST(setrlimit(RLIMIT_STACK, &stack));
  MUST(setpriority(PRIO_PROCESS, 0, 7));
  struct sched_param none = {0};
  MUST(sched_setscheduler(0, SCHED_BATCH, &none));
  cpu_set_t first;
  CPU_ZERO(&first);
  CPU_SET(sched_getcpu(), &first);
  MUST(sched_setaffinity(0, sizeof first, &first));
  MUST(prctl(PR_SET_TIMERSLACK, 123456));
  pthread_t thread;
  pthread_create(&thread, NULL, other, NULL);
  while (!ready) pause_ms(1);
  char before[4096], after[4096];
  describe(before);

  wait_for_check();

  describe(after);
  CHECK(strcmp(before, after) == 0, "now\n%s\nbefore\n%s", after, before);
  go = 1;
  pthread_join(thread, NULL);
  return ok();
}
