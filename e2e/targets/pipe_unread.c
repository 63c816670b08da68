// Pipes with bytes that nobody has read: a few, a full pipe, and the rest after the writer has gone.
#include "target.h"

int main(void) {
  int few[2], full[2], orphaned[2], resized[2];
  MUST(pipe2(few, O_NONBLOCK));
  MUST(pipe2(full, O_NONBLOCK | O_CLOEXEC));
  MUST(pipe(orphaned));
  MUST(pipe(resized));
  MUST(write(few[1], "first", 5));
  MUST(write(few[1], "second", 6));
  char page[4096];
  long filled = 0;
  for (ssize_t put;; filled += put) {
    memset(page, 'a' + (filled / 4096) % 26, sizeof page);
    put = write(full[1], page, sizeof page);
    if (put < 0) break;
  }
  CHECK(errno == EAGAIN && filled == 65536, "a full pipe holds %ld bytes", filled);
  MUST(write(orphaned[1], "last words", 10));
  close(orphaned[1]);
  int size = MUST(fcntl(resized[1], F_SETPIPE_SZ, 262144));

  wait_for_check();

  char text[64] = {0};
  CHECK(MUST(read(few[0], text, sizeof text)) == 11 && strcmp(text, "firstsecond") == 0, "few: read \"%s\"", text);
  CHECK(read(few[0], text, sizeof text) == -1 && errno == EAGAIN, "few: is not empty and non-blocking");
  CHECK(write(full[1], page, sizeof page) == -1 && errno == EAGAIN, "full: is not full any more");
  for (long at = 0; at < filled; at += 4096) {
    CHECK(MUST(read(full[0], page, sizeof page)) == 4096, "full: short read at %ld", at);
    for (int i = 0; i < 4096; i++) CHECK(page[i] == 'a' + (at / 4096) % 26, "full: byte %ld is %d", at + i, page[i]);
  }
  memset(text, 0, sizeof text);
  CHECK(MUST(read(orphaned[0], text, sizeof text)) == 10 && strcmp(text, "last words") == 0, "orphaned: \"%s\"", text);
  CHECK(MUST(read(orphaned[0], text, sizeof text)) == 0, "orphaned: no end of file");
  CHECK(MUST(fcntl(resized[0], F_GETPIPE_SZ)) == size, "resized: %d bytes", fcntl(resized[0], F_GETPIPE_SZ));
  CHECK((MUST(fcntl(full[0], F_GETFD)) & FD_CLOEXEC) != 0, "full: close-on-exec is lost");
  CHECK((MUST(fcntl(few[0], F_GETFD)) & FD_CLOEXEC) == 0, "few: close-on-exec came up");
  return ok();
}
