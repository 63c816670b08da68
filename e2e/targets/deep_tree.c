// A chain of processes, each the child of the one before, and a broad family below the first.
#include "target.h"

enum { kDepth = 12, kBreadth = 12 };
static int forward[kDepth + 1][2], answers[2];

static void chain(int depth) {
  pid_t child = depth < kDepth ? MUST(fork()) : 0;
  if (depth < kDepth && child == 0) {
    pid_t parent = getppid();
    if (depth + 1 < kDepth) chain(depth + 1);
    for (char byte; read(forward[depth][0], &byte, 1) == 1;) {
      CHECK(getppid() == parent, "at depth %d the parent is %d, was %d", depth, getppid(), parent);
      pid_t own = getpid();
      MUST(write(answers[1], &own, sizeof own));
    }
    _exit(0);
  }
}

int main(void) {
  MUST(pipe(answers));
  for (int i = 0; i < kDepth; i++) MUST(pipe(forward[i]));
  chain(0);
  pid_t broad[kBreadth], before[kDepth];
  for (int i = 0; i < kBreadth; i++) {
    broad[i] = MUST(fork());
    if (broad[i] == 0) {
      uint64_t private_sum = fnv(&i, sizeof i);
      while (access("/go", F_OK) != 0) pause_ms(10);
      _exit(private_sum == fnv(&i, sizeof i) ? i : 99);
    }
  }
  for (int i = 0; i < kDepth; i++) {
    MUST(write(forward[i][1], "?", 1));
    MUST(read(answers[0], &before[i], sizeof(pid_t)));
  }

  wait_for_check();

  for (int i = 0; i < kDepth; i++) {
    pid_t now;
    MUST(write(forward[i][1], "?", 1));
    MUST(read(answers[0], &now, sizeof now));
    CHECK(now == before[i], "at depth %d the pid is %d, was %d", i, now, before[i]);
  }
  close(MUST(open("/go", O_CREAT | O_WRONLY, 0600)));
  for (int i = 0; i < kBreadth; i++) {
    int status;
    CHECK(MUST(waitpid(broad[i], &status, 0)) == broad[i], "child %d has gone", i);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == i, "child %d ended with %#x", i, status);
  }
  pid_t fresh = MUST(fork());
  if (fresh == 0) _exit(0);
  MUST(waitpid(fresh, NULL, 0));
  return ok();
}
