// A shared mapping of a file that is only read: it still shows what is written to the file.
#include <sys/mman.h>

#include "target.h"

int main(void) {
  int fd = MUST(open("/data/shared-map", O_RDWR | O_CREAT | O_TRUNC, 0600));
  MUST(ftruncate(fd, 3 * 4096));
  MUST(pwrite(fd, "before", 6, 4096));
  int read_only = MUST(open("/data/shared-map", O_RDONLY));
  const char* mapped = mmap(NULL, 2 * 4096, PROT_READ, MAP_SHARED, read_only, 4096);
  CHECK(mapped != MAP_FAILED, "mmap: %s", strerror(errno));
  close(read_only);

  wait_for_check();

  CHECK(strcmp(mapped, "before") == 0, "it holds \"%s\"", mapped);
  MUST(pwrite(fd, "after!", 6, 4096));
  CHECK(strcmp(mapped, "after!") == 0, "it still holds \"%s\"", mapped);
  CHECK(mprotect((void*)mapped, 4096, PROT_READ | PROT_WRITE) == -1 && errno == EACCES, "it can be made writable");
  return ok();
}
