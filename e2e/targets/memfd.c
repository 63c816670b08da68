// memfds: content, holes, sizes, names, offsets, modes and seals; open twice,
// open in two processes, mapped shared, read-only and private, mapped only.
#include <sys/mman.h>
#include <sys/stat.h>

#include "target.h"

enum { kPage = 4096 };

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

static int make(const char* name, unsigned flags, size_t size) {
  const int fd = MUST(memfd_create(name, flags));
  MUST(ftruncate(fd, (off_t)size));
  return fd;
}

static int reopen(int fd, int flags) {
  char path[32];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return MUST(open(path, flags));
}

static void expect_link(int fd, const char* wanted) {
  char path[32], link[128] = "";
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  MUST(readlink(path, link, sizeof link - 1));
  CHECK(strcmp(link, wanted) == 0, "fd %d is \"%s\", wanted \"%s\"", fd, link, wanted);
}

static void* map(int fd, int protection, int flags, off_t page, size_t pages) {
  return MUST(mmap(NULL, pages * kPage, protection, flags, fd, page * kPage));
}

static void expect_closed_to_writing(void* address) {
  CHECK(mprotect(address, kPage, PROT_READ | PROT_WRITE) == -1 && errno == EACCES,
        "a read-only mapping can be written");
}

int main(void) {
  const int plain = make("plain memory", MFD_ALLOW_SEALING | MFD_CLOEXEC, 20 * kPage + 100);
  put_text(plain, "first", 0);
  put_text(plain, "second", 5 * kPage + 10);
  put_text(plain, "end", 20 * kPage + 97);
  MUST(lseek(plain, 777, SEEK_SET));
  const int reader = reopen(plain, O_RDONLY);
  MUST(lseek(reader, 5 * kPage, SEEK_SET));
  const int appender = reopen(plain, O_WRONLY | O_APPEND);
  char* shared = map(plain, PROT_READ | PROT_WRITE, MAP_SHARED, 5, 2);
  char* read_only = map(reader, PROT_READ, MAP_SHARED, 5, 1);
  char* private_part = map(plain, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0, 2);
  strcpy(private_part + 100, "mine alone");

  const int sealed = make("sealed", MFD_ALLOW_SEALING, 3 * kPage);
  put_text(sealed, "unchangeable", kPage);
  MUST(fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
  char* of_sealed = map(reopen(sealed, O_RDONLY), PROT_READ, MAP_SHARED, 1, 1);

  const int unsealable = make("", 0, 0);
  MUST(fchmod(unsealable, 0640));

  const int closed = make("mapped only", MFD_ALLOW_SEALING, 4 * kPage);
  put_text(closed, "no descriptor", 2 * kPage);
  char* only_mapped = map(closed, PROT_READ | PROT_WRITE, MAP_SHARED, 2, 2);
  MUST(close(closed));

  const int future = make("future", MFD_ALLOW_SEALING, 2 * kPage);
  char* written_before = map(future, PROT_READ | PROT_WRITE, MAP_SHARED, 0, 1);
  MUST(fcntl(future, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));

  int channel[2];
  MUST(pipe(channel));
  const pid_t child = MUST(fork());
  if (child == 0) {
    while (access("/check", F_OK) != 0) pause_ms(5);
    char byte;
    MUST(read(channel[0], &byte, 1));
    CHECK(strcmp(shared + 20, "by the parent") == 0, "the child sees \"%s\"", shared + 20);
    strcpy(only_mapped, "by the child");
    // One description in both processes.
    CHECK(MUST(lseek(plain, 0, SEEK_CUR)) == 900, "the offset is not shared");
    _exit(0);
  }

  wait_for_check();
  struct stat status;
  MUST(fstat(plain, &status));
  CHECK(status.st_size == 20 * kPage + 100, "size %ld", (long)status.st_size);
  CHECK(status.st_blocks * 512 <= 5 * kPage, "the holes are full: %ld blocks", (long)status.st_blocks);
  expect_link(plain, "/memfd:plain memory (deleted)");
  expect_text_at(plain, "first", 0);
  expect_text_at(plain, "second", 5 * kPage + 10);
  expect_text_at(plain, "end", 20 * kPage + 97);
  CHECK(MUST(lseek(plain, 0, SEEK_CUR)) == 777 && MUST(lseek(reader, 0, SEEK_CUR)) == 5 * kPage, "offsets");
  CHECK((MUST(fcntl(plain, F_GETFL)) & O_ACCMODE) == O_RDWR && (MUST(fcntl(reader, F_GETFL)) & O_ACCMODE) == O_RDONLY &&
            (MUST(fcntl(appender, F_GETFL)) & (O_ACCMODE | O_APPEND)) == (O_WRONLY | O_APPEND),
        "access modes");
  CHECK(MUST(fcntl(plain, F_GETFD)) == FD_CLOEXEC, "close on exec");
  CHECK(MUST(fcntl(plain, F_GET_SEALS)) == 0, "seals of an unsealed memfd");
  CHECK(strcmp(shared + 10, "second") == 0 && strcmp(read_only + 10, "second") == 0, "mappings");
  strcpy(shared + 20, "by the parent");
  CHECK(strcmp(read_only + 20, "by the parent") == 0, "the read-only mapping is another memory");
  expect_closed_to_writing(read_only);
  CHECK(memcmp(private_part, "first", 5) == 0 && strcmp(private_part + 100, "mine alone") == 0, "the private mapping");
  expect_text_at(plain, "", 100);
  char byte = 0;
  MUST(pread(plain, &byte, 1, 100));
  CHECK(byte == 0, "private memory has become shared");
  CHECK(MUST(write(appender, "more", 4)) == 4, "write");
  MUST(fstat(plain, &status));
  CHECK(status.st_size == 20 * kPage + 104, "appended at %ld", (long)status.st_size);

  CHECK(MUST(fcntl(sealed, F_GET_SEALS)) == (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), "seals");
  expect_text_at(sealed, "unchangeable", kPage);
  CHECK(strcmp(of_sealed, "unchangeable") == 0, "the mapping of the sealed memfd");
  expect_closed_to_writing(of_sealed);
  CHECK(write(sealed, "x", 1) == -1 && errno == EPERM, "a sealed memfd can be written");

  CHECK(MUST(fcntl(unsealable, F_GET_SEALS)) == F_SEAL_SEAL, "seals of one that cannot be sealed");
  MUST(fstat(unsealable, &status));
  CHECK((status.st_mode & 07777) == 0640 && status.st_size == 0, "mode %o", status.st_mode);
  expect_link(unsealable, "/memfd: (deleted)");

  CHECK(strcmp(only_mapped, "no descriptor") == 0, "what was only mapped is \"%s\"", only_mapped);
  CHECK(MUST(fcntl(future, F_GET_SEALS)) == F_SEAL_FUTURE_WRITE, "the seal of the future");
  strcpy(written_before, "still");
  expect_text_at(future, "still", 0);
  CHECK(mmap(NULL, kPage, PROT_WRITE, MAP_SHARED, future, 0) == MAP_FAILED, "mapped against the seal");

  MUST(lseek(plain, 900, SEEK_SET));
  MUST(write(channel[1], "", 1));
  int code = 0;
  MUST(waitpid(child, &code, 0));
  CHECK(code == 0, "the child ended with status %x", code);
  CHECK(strcmp(only_mapped, "by the child") == 0, "what the child wrote is \"%s\"", only_mapped);
  return ok();
}
