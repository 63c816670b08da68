// Deleted files in the directory that is given: content, holes, size, mode and
// time; offsets, appending, a read-only opener, a description in two processes,
// a lock (unless "unlocked" is given), mappings, shared and private, one of a file that nobody has open; and
// a file whose name is another's by now.
#include <sys/mman.h>
#include <sys/stat.h>

#include "target.h"

enum { kPage = 4096, kLarge = 3 << 20 };

static char directory[128];

static const char* path_of(const char* name) {
  static char path[256];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  return path;
}

static int make(const char* name, int flags) { return MUST(open(path_of(name), O_CREAT | O_EXCL | flags, 0640)); }

static uint32_t number_at(uint32_t index) { return index * 2654435761u + 12345; }

static void fill(int fd) {
  static uint32_t numbers[kLarge / sizeof(uint32_t)];
  for (uint32_t i = 0; i < kLarge / sizeof(uint32_t); ++i) numbers[i] = number_at(i);
  CHECK(MUST(write(fd, numbers, kLarge)) == kLarge, "short write");
}

static void expect_filled(int fd) {
  static uint32_t numbers[kLarge / sizeof(uint32_t)];
  CHECK(MUST(pread(fd, numbers, kLarge, 0)) == kLarge, "the large file is short");
  for (uint32_t i = 0; i < kLarge / sizeof(uint32_t); ++i)
    CHECK(numbers[i] == number_at(i), "the large file differs at %u", i * 4);
}

static struct flock lock_of(short type) {
  return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = 100, .l_len = 50};
}

int main(int argc, char** argv) {
  snprintf(directory, sizeof directory, "%s", argc > 1 ? argv[1] : "/tmp");
  const int plain = make("plain", O_RDWR);
  put_text(plain, "first", 0);
  put_text(plain, "second", 5 * kPage + 10);
  put_text(plain, "end", 200 * kPage + 97);
  MUST(ftruncate(plain, 300 * kPage + 5));
  const int reader = MUST(open(path_of("plain"), O_RDONLY));
  const int appender = MUST(open(path_of("plain"), O_WRONLY | O_APPEND));
  MUST(lseek(plain, 777, SEEK_SET));
  MUST(lseek(reader, 5 * kPage, SEEK_SET));
  char* shared = MUST(mmap(NULL, 2 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, plain, 5 * kPage));
  char* private_part = MUST(mmap(NULL, 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE, reader, 0));
  strcpy(private_part + 100, "mine alone");
  strcpy(shared + 40, "through memory");
  struct flock lock = lock_of(argc > 2 ? F_UNLCK : F_WRLCK);
  MUST(fcntl(plain, F_SETLK, &lock));
  const struct timespec times[2] = {{1000000000, 0}, {1234567890, 654321000}};
  MUST(unlink(path_of("plain")));

  const int large = make("large", O_RDWR);
  fill(large);
  MUST(unlink(path_of("large")));

  const int mapped = make("mapped", O_RDWR);
  put_text(mapped, "no descriptor", 2 * kPage);
  MUST(ftruncate(mapped, 4 * kPage));
  char* only_mapped = MUST(mmap(NULL, 2 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, mapped, 2 * kPage));
  MUST(close(mapped));
  MUST(unlink(path_of("mapped")));

  const int old = make("again", O_RDWR);
  put_text(old, "the old one", 0);
  MUST(unlink(path_of("again")));
  const int again = make("again", O_RDWR);
  put_text(again, "the new one", 0);

  const int empty = make("empty", O_RDONLY);
  MUST(fchmod(empty, 0444));
  MUST(unlink(path_of("empty")));

  int channel[2];
  MUST(pipe(channel));
  const pid_t child = MUST(fork());
  if (child == 0) {
    char byte;
    MUST(read(channel[0], &byte, 1));
    CHECK(strcmp(shared + 40, "by the parent") == 0, "the child sees \"%s\"", shared + 40);
    strcpy(only_mapped, "by the child");
    CHECK(MUST(lseek(plain, 0, SEEK_CUR)) == 900, "the offset is not shared");
    struct flock held = lock_of(F_WRLCK);
    MUST(fcntl(plain, F_GETLK, &held));
    CHECK(argc > 2 ? held.l_type == F_UNLCK
                   : held.l_type == F_WRLCK && held.l_pid == getppid() && held.l_start == 100 && held.l_len == 50,
          "the lock");
    _exit(0);
  }
  MUST(futimens(plain, times));

  wait_for_check();
  struct stat status;
  MUST(fstat(plain, &status));
  CHECK(status.st_nlink == 0, "it has a name");
  CHECK(status.st_size == 300 * kPage + 5, "size %ld", (long)status.st_size);
  CHECK((status.st_mode & 07777) == 0640, "mode %o", status.st_mode);
  CHECK(status.st_blocks * 512 <= 20 * kPage, "the holes are full: %ld blocks", (long)status.st_blocks);
  CHECK(status.st_mtim.tv_sec == 1234567890 && status.st_mtim.tv_nsec == 654321000, "time %ld.%ld",
        (long)status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
  struct stat of_reader;
  MUST(fstat(reader, &of_reader));
  CHECK(of_reader.st_ino == status.st_ino && of_reader.st_dev == status.st_dev, "the reader has another file");
  expect_text_at(plain, "first", 0);
  expect_text_at(plain, "second", 5 * kPage + 10);
  expect_text_at(plain, "end", 200 * kPage + 97);
  CHECK(MUST(lseek(plain, 0, SEEK_CUR)) == 777 && MUST(lseek(reader, 0, SEEK_CUR)) == 5 * kPage, "offsets");
  CHECK((MUST(fcntl(plain, F_GETFL)) & O_ACCMODE) == O_RDWR && (MUST(fcntl(reader, F_GETFL)) & O_ACCMODE) == O_RDONLY &&
            (MUST(fcntl(appender, F_GETFL)) & (O_ACCMODE | O_APPEND)) == (O_WRONLY | O_APPEND),
        "access modes");
  CHECK(strcmp(shared + 10, "second") == 0 && strcmp(shared + 40, "through memory") == 0, "the shared mapping");
  expect_text_at(reader, "through memory", 5 * kPage + 40);
  CHECK(memcmp(private_part, "first", 5) == 0 && strcmp(private_part + 100, "mine alone") == 0, "the private mapping");
  char byte = 1;
  MUST(pread(plain, &byte, 1, 100));
  CHECK(byte == 0, "private memory has become shared");
  CHECK(MUST(write(appender, "more", 4)) == 4, "write");
  expect_text_at(reader, "more", 300 * kPage + 5);

  expect_filled(large);
  CHECK(MUST(lseek(large, 0, SEEK_CUR)) == kLarge, "the offset of the large file");
  CHECK(strcmp(only_mapped, "no descriptor") == 0, "what was only mapped is \"%s\"", only_mapped);
  expect_text_at(old, "the old one", 0);
  expect_text_at(again, "the new one", 0);
  MUST(fstat(again, &status));
  CHECK(status.st_nlink == 1, "the new one has lost its name");
  MUST(fstat(empty, &status));
  CHECK(status.st_size == 0 && (status.st_mode & 07777) == 0444, "the empty one");
  CHECK(access(path_of("plain"), F_OK) == -1 && access(path_of("large"), F_OK) == -1, "a name has come back");

  strcpy(shared + 40, "by the parent");
  MUST(lseek(plain, 900, SEEK_SET));
  MUST(write(channel[1], "", 1));
  int result;
  MUST(waitpid(child, &result, 0));
  CHECK(result == 0, "the child has failed");
  CHECK(strcmp(only_mapped, "by the child") == 0, "the child's mapping is another memory");
  MUST(unlink(path_of("again")));
  return ok();
}
