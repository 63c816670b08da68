// Regular files: offset, append mode, access modes, a hole, a position behind the end; numbers with gaps between them.
#include <sys/stat.h>

#include "target.h"

int main(void) {
  int read_write = MUST(open("/data/rw", O_RDWR | O_CREAT | O_TRUNC, 0640));
  MUST(write(read_write, "abcdef", 6));
  MUST(lseek(read_write, 2, SEEK_SET));
  int append = MUST(open("/data/log", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600));
  MUST(write(append, "one\n", 4));
  int gap = MUST(open("/data/rw", O_RDONLY));
  int far = MUST(fcntl(gap, F_DUPFD_CLOEXEC, 60));
  MUST(lseek(far, 1, SEEK_SET));
  int read_only = MUST(open("/data/rw", O_RDONLY | O_NOFOLLOW));
  MUST(lseek(read_only, 4, SEEK_SET));
  int sparse = MUST(open("/data/sparse", O_RDWR | O_CREAT | O_TRUNC, 0600));
  MUST(lseek(sparse, 1 << 20, SEEK_SET));
  int directory = MUST(open("/data", O_RDONLY | O_DIRECTORY));
  int path_only = MUST(open("/data/rw", O_PATH));
  int flags = fcntl(append, F_GETFL);
  MUST(close(gap));

  wait_for_check();

  CHECK(lseek(far, 0, SEEK_CUR) == 1, "the file at number %d is at another offset", far);
  CHECK(fcntl(far, F_GETFD) == FD_CLOEXEC, "number %d is not closed on exec any more", far);
  CHECK(fcntl(append, F_GETFD) == 0, "number %d is closed on exec now", append);
  int lowest = MUST(dup(append));
  CHECK(lowest == gap, "the lowest free number is %d, was %d", lowest, gap);
  MUST(close(lowest));
  char text[16] = {0};
  MUST(read(read_write, text, 2));
  CHECK(strcmp(text, "cd") == 0, "rw: read \"%s\" at offset 2", text);
  CHECK(fcntl(append, F_GETFL) == flags, "log: flags %#o, were %#o", fcntl(append, F_GETFL), flags);
  MUST(lseek(append, 0, SEEK_SET));
  MUST(write(append, "two\n", 4));
  char* log = read_file("/data/log");
  CHECK(strcmp(log, "one\ntwo\n") == 0, "log holds \"%s\"", log);
  memset(text, 0, sizeof text);
  MUST(read(read_only, text, 8));
  CHECK(strcmp(text, "ef") == 0, "read-only: \"%s\"", text);
  CHECK(write(read_only, "x", 1) == -1 && errno == EBADF, "read-only can be written");
  CHECK(read(append, text, 1) == -1 && errno == EBADF, "write-only can be read");
  MUST(write(sparse, "end", 3));
  struct stat facts;
  MUST(fstat(sparse, &facts));
  CHECK(facts.st_size == (1 << 20) + 3, "sparse is %ld bytes long", (long)facts.st_size);
  int beside = MUST(openat(directory, "rw", O_RDONLY));
  CHECK(beside >= 0, "the directory's descriptor does not work");
  CHECK(read(path_only, text, 1) == -1 && errno == EBADF, "an O_PATH descriptor can be read");
  MUST(fstat(path_only, &facts));
  CHECK(facts.st_size == 6, "O_PATH names a file of %ld bytes", (long)facts.st_size);
  return ok();
}
