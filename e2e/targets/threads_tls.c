// Threads: thread-local memory, names, own masks and stacks, mutexes held and waited for, a condition variable.
#include <pthread.h>
#include <sys/prctl.h>

#include "target.h"

enum { kThreads = 12 };
static __thread int own_number;
static __thread char own_memory[8192];
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER, lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static int running, go, finished;
static pid_t tids[kThreads];

static void* work(void* argument) {
  own_number = (int)(intptr_t)argument;
  memset(own_memory, own_number, sizeof own_memory);
  char name[16];
  snprintf(name, sizeof name, "worker-%d", own_number);
  prctl(PR_SET_NAME, name);
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGRTMIN + 1 + own_number);
  pthread_sigmask(SIG_SETMASK, &mask, NULL);
  char deep[20000];
  memset(deep, own_number + 1, sizeof deep);
  tids[own_number] = gettid();
  pthread_mutex_lock(&lock);
  running++;
  while (!go) pthread_cond_wait(&condition, &lock);
  pthread_mutex_unlock(&lock);
  // Half of them now wait on a mutex that somebody holds since before.
  if (own_number % 2 == 0) {
    pthread_mutex_lock(&gate);
    pthread_mutex_unlock(&gate);
  }
  for (size_t i = 0; i < sizeof own_memory; i++)
    CHECK(own_memory[i] == own_number, "thread-local memory of %d changed", own_number);
  for (size_t i = 0; i < sizeof deep; i++) CHECK(deep[i] == own_number + 1, "the stack of %d changed", own_number);
  CHECK(tids[own_number] == gettid(), "thread %d is now %d, was %d", own_number, gettid(), tids[own_number]);
  char now[16];
  prctl(PR_GET_NAME, now);
  CHECK(strcmp(now, name) == 0, "thread %d is called %s", own_number, now);
  sigset_t current;
  pthread_sigmask(SIG_BLOCK, NULL, &current);
  CHECK(sigismember(&current, SIGRTMIN + 1 + own_number) == 1, "the mask of thread %d is lost", own_number);
  pthread_mutex_lock(&lock);
  finished++;
  pthread_mutex_unlock(&lock);
  return argument;
}

int main(void) {
  pthread_t threads[kThreads];
  pthread_mutex_lock(&gate);
  own_number = -1;
  for (int i = 0; i < kThreads; i++)
    CHECK(pthread_create(&threads[i], NULL, work, (void*)(intptr_t)i) == 0, "no thread");
  for (int all = 0; all < kThreads;) {
    pthread_mutex_lock(&lock);
    all = running;
    pthread_mutex_unlock(&lock);
    pause_ms(1);
  }

  wait_for_check();

  CHECK(own_number == -1, "the main thread's own memory changed");
  pthread_mutex_lock(&lock);
  go = 1;
  pthread_cond_broadcast(&condition);
  pthread_mutex_unlock(&lock);
  pause_ms(50);
  pthread_mutex_unlock(&gate);
  for (int i = 0; i < kThreads; i++) {
    void* result;
    CHECK(pthread_join(threads[i], &result) == 0 && result == (void*)(intptr_t)i, "thread %d cannot be joined", i);
  }
  CHECK(finished == kThreads, "%d threads finished", finished);
  // The next thread's id must not collide with one of the old ones.
  pthread_t another;
  CHECK(pthread_create(&another, NULL, work, (void*)(intptr_t)1) == 0, "no new thread");
  pthread_join(another, NULL);
  return ok();
}
