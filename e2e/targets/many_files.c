// More descriptors than a process usually has, without a gap: each is its own
// file at its own offset.
#include "target.h"

enum { kFiles = 300 };

int main(void) {
  char path[64], line[64];
  int fds[kFiles];
  for (int i = 0; i < kFiles; i++) {
    snprintf(path, sizeof path, "/tmp/many-%d", i);
    fds[i] = MUST(open(path, O_RDWR | O_CREAT | O_TRUNC, 0600));
    const int length = snprintf(line, sizeof line, "file %d", i);
    CHECK(write(fds[i], line, (size_t)length) == length, "write to %s", path);
    MUST(lseek(fds[i], i % 4, SEEK_SET));
  }
  wait_for_check();
  for (int i = 0; i < kFiles; i++) {
    const int length = snprintf(line, sizeof line, "file %d", i);
    CHECK(lseek(fds[i], 0, SEEK_CUR) == i % 4, "file %d is at another offset", i);
    char found[64];
    CHECK(pread(fds[i], found, sizeof found, 0) == length && memcmp(found, line, (size_t)length) == 0,
          "descriptor %d is another file", fds[i]);
  }
  return ok();
}
