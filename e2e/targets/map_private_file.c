// A private mapping of a file: changed pages are its own, the others still come from the file.
#include <sys/mman.h>

#include "target.h"

int main(void) {
  const size_t size = 64 * 4096;
  int fd = MUST(open("/data/mapped", O_RDWR | O_CREAT | O_TRUNC, 0600));
  char page[4096];
  for (int i = 0; i < 64; i++) {
    memset(page, i + 1, sizeof page);
    MUST(write(fd, page, sizeof page));
  }
  unsigned char* mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
  CHECK(mapped != MAP_FAILED, "mmap: %s", strerror(errno));
  unsigned char* second = mmap(NULL, 8 * 4096, PROT_READ, MAP_PRIVATE, fd, 32 * 4096);
  close(fd);
  for (int i = 0; i < 64; i += 5) mapped[i * 4096 + 7] = 200;
  // Zeroes over a file are content: a page that is left out would show the file again.
  unsigned char* zeroed = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, MUST(open("/data/mapped", O_RDWR)), 0);
  CHECK(zeroed != MAP_FAILED, "mmap: %s", strerror(errno));
  memset(zeroed + 4096, 0, size - 4096);
  // Zeroes in anonymous memory are nothing.
  unsigned char* anonymous = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(anonymous != MAP_FAILED, "mmap: %s", strerror(errno));
  memset(anonymous, 9, size);
  memset(anonymous + 4096, 0, size - 2 * 4096);

  wait_for_check();

  for (int i = 0; i < 64; i++) {
    CHECK(mapped[i * 4096 + 7] == (i % 5 == 0 ? 200 : i + 1), "page %d holds %d", i, mapped[i * 4096 + 7]);
    CHECK(mapped[i * 4096 + 9] == i + 1, "page %d holds %d", i, mapped[i * 4096 + 9]);
  }
  for (size_t i = 0; i < size; i++) {
    CHECK(zeroed[i] == (i < 4096 ? 1 : 0), "byte %zu of the zeroed mapping is %d", i, zeroed[i]);
    CHECK(anonymous[i] == (i < 4096 || i >= size - 4096 ? 9 : 0), "byte %zu of anonymous memory is %d", i,
          anonymous[i]);
  }
  CHECK(second[0] == 33, "the second mapping holds %d", second[0]);
  fd = MUST(open("/data/mapped", O_RDWR));
  MUST(pwrite(fd, "\xfe", 1, 33 * 4096 + 100));
  CHECK(second[4096 + 100] == 0xfe, "the second mapping has lost its file");
  mapped[4096] = 77;
  unsigned char byte;
  MUST(pread(fd, &byte, 1, 4096));
  CHECK(byte == 2, "a private change reached the file");
  return ok();
}
