// Memory of transparent huge pages is of huge pages afterwards, too.
#include <stdbool.h>
#include <sys/mman.h>

#include "target.h"

enum { kHuge = 2 << 20, kCount = 16 };

static unsigned long huge_kib(void) {
  const char* line = status_line(read_file("/proc/self/smaps_rollup"), "AnonHugePages");
  return line ? strtoul(line, NULL, 10) : 0;
}

static bool are_given(void) {
  int fd = open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  close(fd);
  return strstr(read_file("/sys/kernel/mm/transparent_hugepage/enabled"), "[never]") == NULL;
}

int main(void) {
  char* memory = MUST(mmap(NULL, (kCount + 1) * kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  uint64_t* huge = (uint64_t*)(((uintptr_t)memory + kHuge - 1) & ~(uintptr_t)(kHuge - 1));
  const bool given = are_given();
  if (given) MUST(madvise(huge, kCount * kHuge, MADV_HUGEPAGE));
  const size_t words = (size_t)kCount * kHuge / sizeof *huge;
  for (size_t i = 0; i < words; i++) huge[i] = i * 0x9e3779b97f4a7c15ull + 1;
  const unsigned long before_kib = huge_kib();
  CHECK(!given || before_kib > 0, "the kernel gave no huge page");
  wait_for_check();
  const unsigned long after_kib = huge_kib();
  CHECK(after_kib >= before_kib, "%lu KiB of huge pages were %lu KiB before", after_kib, before_kib);
  for (size_t i = 0; i < words; i++) CHECK(huge[i] == i * 0x9e3779b97f4a7c15ull + 1, "word %zu is not its own", i);
  return ok();
}
