// A child that SIGSTOP has stopped stays stopped until SIGCONT.
#include "target.h"

static char state_of(pid_t pid) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  char* text = read_file(path);
  char state = strrchr(text, ')')[2];
  free(text);
  return state;
}

int main(void) {
  int ends[2];
  MUST(pipe2(ends, O_NONBLOCK));
  pid_t child = MUST(fork());
  if (child == 0) {
    for (;;) {
      MUST(write(ends[1], "x", 1));
      pause_ms(5);
    }
  }
  char byte;
  while (read(ends[0], &byte, 1) != 1) pause_ms(1);
  MUST(kill(child, SIGSTOP));
  while (state_of(child) != 'T') pause_ms(1);
  while (read(ends[0], &byte, 1) == 1) {
  }

  wait_for_check();

  CHECK(state_of(child) == 'T', "the child is in state %c", state_of(child));
  CHECK(read(ends[0], &byte, 1) == -1 && errno == EAGAIN, "the child has run");
  MUST(kill(child, SIGCONT));
  for (int i = 0; i < 1000 && read(ends[0], &byte, 1) != 1; i++) pause_ms(5);
  CHECK(byte == 'x', "the child does not go on");
  MUST(kill(child, SIGKILL));
  MUST(waitpid(child, NULL, 0));
  return ok();
}
