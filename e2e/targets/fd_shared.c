// One open file description behind several descriptors: after dup, dup2 to a
// high number, and fork. What moves the offset here, moves it there.
#include "target.h"

int main(void) {
  int fd = MUST(open("/data/shared", O_RDWR | O_CREAT | O_TRUNC, 0600));
  int copy = MUST(dup(fd));
  int high = MUST(dup3(fd, 900, O_CLOEXEC));
  int separate = MUST(open("/data/shared", O_RDWR));
  int to_child[2], from_child[2];
  MUST(pipe(to_child));
  MUST(pipe(from_child));
  MUST(write(fd, "0123456789", 10));

  pid_t child = MUST(fork());
  if (child == 0) {
    char byte;
    MUST(read(to_child[0], &byte, 1));
    MUST(write(fd, "child", 5));
    MUST(write(from_child[1], "k", 1));
    MUST(read(to_child[0], &byte, 1));
    _exit(0);
  }
  wait_for_check();

  CHECK(MUST(lseek(copy, 0, SEEK_CUR)) == 10, "the copy is at %ld", (long)lseek(copy, 0, SEEK_CUR));
  MUST(lseek(fd, 3, SEEK_SET));
  CHECK(lseek(copy, 0, SEEK_CUR) == 3 && lseek(high, 0, SEEK_CUR) == 3, "the copies do not share the offset");
  CHECK(lseek(separate, 0, SEEK_CUR) == 0, "a second open() shares the offset");
  MUST(write(to_child[1], "g", 1));
  char byte;
  MUST(read(from_child[0], &byte, 1));
  CHECK(lseek(fd, 0, SEEK_CUR) == 8, "the child's write left our offset at %ld", (long)lseek(fd, 0, SEEK_CUR));
  char text[16] = {0};
  MUST(pread(separate, text, 15, 0));
  CHECK(strcmp(text, "012child89") == 0, "the file holds \"%s\"", text);
  CHECK((fcntl(high, F_GETFD) & FD_CLOEXEC) != 0 && (fcntl(copy, F_GETFD) & FD_CLOEXEC) == 0,
        "close-on-exec flags differ");
  // Status flags belong to the description, not to the descriptor.
  MUST(fcntl(copy, F_SETFL, O_APPEND));
  CHECK((fcntl(fd, F_GETFL) & O_APPEND) != 0, "the copies do not share status flags");
  MUST(write(to_child[1], "x", 1));
  int status;
  MUST(waitpid(child, &status, 0));
  CHECK(status == 0, "the child ended with %d", status);
  return ok();
}
