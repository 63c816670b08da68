// Counts all the time, in memory and in a deleted file of some MiB, at both of
// its ends: whatever is restored has to be of one moment.
#include <sys/mman.h>

#include "target.h"

enum { kPage = 4096, kBytes = 32 << 20 };

int main(void) {
  static char block[1 << 20];
  memset(block, 7, sizeof block);
  const int fd = MUST(open("/tmp/counted", O_CREAT | O_EXCL | O_RDWR, 0600));
  MUST(unlink("/tmp/counted"));
  for (off_t at = 0; at < kBytes; at += sizeof block) MUST(pwrite(fd, block, sizeof block, at));
  volatile uint64_t* first = MUST(mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  const off_t last = kBytes - sizeof(uint64_t);
  uint64_t count = 0;
  *first = 0;
  MUST(pwrite(fd, &count, sizeof count, last));
  printf("READY\n");
  fflush(stdout);
  while (count % 1024 != 0 || access("/check", F_OK) != 0) {
    uint64_t found;
    MUST(pread(fd, &found, sizeof found, last));
    CHECK(*first == count && found == count, "memory says %lu, the file %lu and %lu", count, *first, found);
    ++count;
    *first = count;
    MUST(pwrite(fd, &count, sizeof count, last));
  }
  return ok();
}
