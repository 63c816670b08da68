// Sessions and process groups, among them groups and sessions whose leader has gone.
#include "target.h"

enum { kChildren = 5 };
typedef struct {
  pid_t pid, parent, group, session;
} Facts;
static Facts facts(void) { return (Facts){getpid(), getppid(), getpgrp(), getsid(0)}; }

static int requests[kChildren][2], answers[2];

static void serve(int i) {
  for (char byte;;) {
    MUST(read(requests[i][0], &byte, 1));
    Facts now = facts();
    MUST(write(answers[1], &now, sizeof now));
  }
}

static Facts ask(int i) {
  Facts now;
  MUST(write(requests[i][1], "?", 1));
  MUST(read(answers[0], &now, sizeof now));
  return now;
}

int main(void) {
  MUST(pipe(answers));
  for (int i = 0; i < kChildren; i++) MUST(pipe(requests[i]));
  if (MUST(fork()) == 0) serve(0);                       // our session and group
  if (MUST(fork()) == 0) MUST(setsid()), serve(1);       // a session of its own
  if (MUST(fork()) == 0) MUST(setpgid(0, 0)), serve(2);  // a group of its own
  pid_t leader = MUST(fork());
  if (leader == 0) {  // a session whose leader dies, an orphan in it
    MUST(setsid());
    if (MUST(fork()) == 0) serve(3);
    _exit(0);
  }
  pid_t group_leader = MUST(fork());
  if (group_leader == 0) {  // a group whose leader dies
    MUST(setpgid(0, 0));
    if (MUST(fork()) == 0) serve(4);
    _exit(0);
  }
  MUST(waitpid(leader, NULL, 0));
  MUST(waitpid(group_leader, NULL, 0));
  Facts before[kChildren];
  for (int i = 0; i < kChildren; i++) before[i] = ask(i);
  CHECK(before[3].session == leader && before[4].group == group_leader, "not set up as meant");

  wait_for_check();

  for (int i = 0; i < kChildren; i++) {
    Facts now = ask(i);
    CHECK(memcmp(&now, &before[i], sizeof now) == 0,
          "process %d: pid %d parent %d group %d session %d, was %d %d %d %d", i, now.pid, now.parent, now.group,
          now.session, before[i].pid, before[i].parent, before[i].group, before[i].session);
  }
  MUST(kill(-group_leader, SIGKILL));
  CHECK(MUST(waitpid(-1, NULL, 0)) == before[4].pid, "a signal to the group reached somebody else");
  return ok();
}
