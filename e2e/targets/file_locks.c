// Locks of files: POSIX ranges, flock and open file description locks; of a parent and of its child, which also looks
// at them from outside of the process that has them. With the argument "plain" none of the files is mapped,
// and the child has opened what it locks.
#include <sys/file.h>
#include <sys/mman.h>

#include "target.h"

static struct flock range(short type, off_t start, off_t length) {
  return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
}

static void take(int fd, int command, short type, off_t start, off_t length) {
  struct flock lock = range(type, start, length);
  MUST(fcntl(fd, command, &lock));
}

// Who stands in the way of a write lock there: a pid, -1 for an open file description, 0 for nobody.
static pid_t holder(int fd, off_t start, short* type, off_t* first, off_t* length) {
  struct flock lock = range(F_WRLCK, start, 1);
  MUST(fcntl(fd, F_GETLK, &lock));
  *type = lock.l_type;
  *first = lock.l_start;
  *length = lock.l_len;
  return lock.l_type == F_UNLCK ? 0 : lock.l_pid;
}

static void expect(int fd, off_t start, pid_t pid, short type, off_t first, off_t length) {
  short found_type;
  off_t found_first, found_length;
  const pid_t found = holder(fd, start, &found_type, &found_first, &found_length);
  CHECK(found == pid, "byte %ld is locked by %d, was by %d", (long)start, found, pid);
  if (pid == 0) return;
  CHECK(found_type == type, "byte %ld has a lock of type %d, had %d", (long)start, found_type, type);
  CHECK(found_first == first && found_length == length, "byte %ld is in a lock of %ld+%ld, was %ld+%ld", (long)start,
        (long)found_first, (long)found_length, (long)first, (long)length);
}

static void expect_flock(const char* path, int operation, int possible) {
  int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
  const int got = flock(fd, operation | LOCK_NB);
  CHECK((got == 0) == possible, "%s: flock %d is %s", path, operation, got == 0 ? "free" : "taken");
  close(fd);
}

int main(int argc, char** argv) {
  const int plain = argc > 1 && strcmp(argv[1], "plain") == 0;
  int ranges = MUST(open("/data/ranges", O_RDWR | O_CREAT | O_TRUNC, 0640));
  MUST(ftruncate(ranges, 1 << 16));
  // A mapping, for which the restore opens and closes the file: that must not cost the locks.
  char* mapped = NULL;
  if (!plain) {
    mapped = MUST((char*)mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED, ranges, 0));
    mapped[0] = 'x';
  }
  int reader = MUST(open("/data/ranges", O_RDONLY));
  take(ranges, F_SETLK, F_WRLCK, 0, 10);
  take(reader, F_SETLK, F_RDLCK, 100, 50);
  take(ranges, F_SETLK, F_WRLCK, 1000, 0);
  int exclusive = MUST(open("/data/exclusive", O_RDWR | O_CREAT | O_TRUNC, 0640));
  MUST(flock(exclusive, LOCK_EX));
  int shared = MUST(open("/data/shared", O_RDONLY | O_CREAT | O_TRUNC, 0640));
  MUST(flock(shared, LOCK_SH));
  int described = MUST(open("/data/described", O_RDWR | O_CREAT | O_TRUNC, 0640));
  take(described, F_OFD_SETLK, F_WRLCK, 7, 3);

  int ready[2], question[2];
  MUST(pipe(ready));
  MUST(pipe(question));
  const pid_t parent = getpid();
  const pid_t child = MUST(fork());
  if (child == 0) {
    // Of its own, through the file that it has from its parent.
    take(plain ? MUST(open("/data/ranges", O_RDWR)) : ranges, F_SETLK, F_WRLCK, 500, 20);
    MUST(write(ready[1], "r", 1));
    char byte;
    while (read(question[0], &byte, 1) < 0 && errno == EINTR) {
    }
    expect(ranges, 0, parent, F_WRLCK, 0, 10);
    expect(ranges, 120, parent, F_RDLCK, 100, 50);
    expect(ranges, 5000, parent, F_WRLCK, 1000, 0);
    expect(ranges, 50, 0, F_UNLCK, 0, 0);
    // Both have the open file that is locked: it is another open file that is kept out.
    int other = MUST(open("/data/described", O_RDWR));
    expect(other, 8, -1, F_WRLCK, 7, 3);
    expect(other, 20, 0, F_UNLCK, 0, 0);
    expect_flock("/data/exclusive", LOCK_SH, 0);
    expect_flock("/data/shared", LOCK_SH, 1);
    expect_flock("/data/shared", LOCK_EX, 0);
    _exit(0);
  }
  char byte;
  MUST(read(ready[0], &byte, 1));

  wait_for_check();

  expect(ranges, 510, child, F_WRLCK, 500, 20);
  MUST(write(question[1], "q", 1));
  int status;
  MUST(waitpid(child, &status, 0));
  CHECK(status == 0, "the child ended with status %#x", status);
  CHECK(plain || mapped[0] == 'x', "the mapping has lost its content");
  // Not said before: a child that fails has its own FAIL on the same output.
  MUST(flock(exclusive, LOCK_UN));
  expect_flock("/data/exclusive", LOCK_EX, 1);
  return ok();
}
