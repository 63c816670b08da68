// Protections, madvise flags, holes, a growing stack, a heap that grows on: the map of the memory and its content.
#include <sys/mman.h>
#include <sys/prctl.h>

#include "target.h"

enum { kPages = 2048, kPatches = 64 };

struct mapping {
  unsigned long start, end, offset;
  char protection[5];
  // Device, inode and name.
  char* file;
  // Those that madvise and mprotect set.
  char* flags;
};

// Whether the kernel would have made one of them, had their pages always been protected as they are now.
static int continues(const struct mapping* next, const struct mapping* last) {
  int named = strchr(next->file, '/') != NULL;
  return next->start == last->end && (!named || next->offset == last->offset + (last->end - last->start)) &&
         strcmp(next->protection, last->protection) == 0 && strcmp(next->file, last->file) == 0 &&
         strcmp(next->flags, last->flags) == 0;
}

static char* layout(void) {
  char* smaps = read_file("/proc/self/smaps");
  char* out = calloc(1, strlen(smaps) + 1);
  struct mapping last = {.file = "", .flags = ""}, next = last;
  int length = 0, skip = 0;
  for (char* line = strtok(smaps, "\n"); line != NULL; line = strtok(NULL, "\n")) {
    struct mapping read = {.flags = ""};
    int file = 0;
    if (sscanf(line, "%lx-%lx %4s %lx %n", &read.start, &read.end, read.protection, &read.offset, &file) == 4) {
      // The stack and heap may have grown; the inode of a vdso has no meaning.
      skip = strstr(line, "[stack]") != NULL || strstr(line, "[heap]") != NULL;
      next = read;
      next.file = line + file;
    } else if (!skip && strncmp(line, "VmFlags", 7) == 0) {
      // Accounting, not layout: sd (soft-dirty), and ac (charged), which depends on what protection a page once had.
      const char* accounting[] = {" sd", " ac"};
      for (int i = 0; i < 2; i++) {
        char* flag = strstr(line, accounting[i]);
        if (flag != NULL) memmove(flag, flag + 3, strlen(flag + 3) + 1);
      }
      next.flags = line;
      if (continues(&next, &last)) {
        next.start = last.start;
        next.offset = last.offset;
      } else {
        length += (int)strlen(out + length);
      }
      sprintf(out + length, "%lx-%lx %s %lx %s %s\n", next.start, next.end, next.protection, next.offset, next.file,
              next.flags);
      last = next;
    }
  }
  free(smaps);
  return out;
}

int main(void) {
  unsigned char* sparse = mmap(NULL, kPages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (int i = 0; i < kPages; i += 3) memset(sparse + i * 4096, i % 251 + 1, 4096);
  // Touched, and zero all the same.
  for (int i = 1; i < kPages; i += 3) sparse[i * 4096] = 0;
  unsigned char* guarded = mmap(NULL, 16 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memset(guarded, 0x5a, 16 * 4096);
  MUST(mprotect(guarded + 4 * 4096, 4096, PROT_NONE));
  MUST(mprotect(guarded + 8 * 4096, 4096, PROT_READ));
  MUST(mprotect(guarded + 9 * 4096, 4096, PROT_READ | PROT_EXEC));
  MUST(munmap(guarded + 12 * 4096, 4096));
  unsigned char* advised =
      mmap(NULL, 8 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  memset(advised, 9, 8 * 4096);
  MUST(madvise(advised, 4096, MADV_DONTFORK));
  MUST(madvise(advised + 4096, 4096, MADV_DONTDUMP));
  MUST(madvise(advised + 3 * 4096, 4096, MADV_WIPEONFORK));
  // So many small neighbours that a restore may take them together.
  unsigned char* patchwork = mmap(NULL, kPatches * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (int i = 0; i < kPatches; i++)
    if (i % 5 != 3) memset(patchwork + i * 4096, i + 1, 4096);
  uint64_t patches = fnv(patchwork, kPatches * 4096);
  const int protections[] = {PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE, PROT_READ | PROT_WRITE,
                             PROT_READ | PROT_EXEC};
  for (int i = 0; i < kPatches; i++) MUST(mprotect(patchwork + i * 4096, 4096, protections[i % 5]));
  char* heap = sbrk(0);
  MUST((intptr_t)sbrk(3 * 4096) == -1 ? -1 : 0);
  memset(heap, 'h', 3 * 4096);
  uint64_t hash = fnv(sparse, kPages * 4096);
  char* before = layout();
  char* heap_end = sbrk(0);
  free(layout());

  wait_for_check();

  CHECK(fnv(sparse, kPages * 4096) == hash, "the content of memory changed");
  CHECK(sbrk(0) >= (void*)heap_end && heap[0] == 'h' && heap[3 * 4096 - 1] == 'h', "the heap changed");
  MUST((intptr_t)sbrk(1 << 20) == -1 ? -1 : 0);
  MUST(mprotect(guarded + 4 * 4096, 4096, PROT_READ));
  CHECK(guarded[4 * 4096] == 0x5a, "a page without access lost its content");
  MUST(mprotect(guarded + 4 * 4096, 4096, PROT_NONE));
  char* after = layout();
  if (strcmp(before, after) != 0) {
    int i = 0;
    while (before[i] == after[i]) i++;
    while (i > 0 && before[i - 1] != '\n') i--;
    FAIL("the layout changed: \"%.*s\" was \"%.*s\"", (int)strcspn(after + i, "\n"), after + i,
         (int)strcspn(before + i, "\n"), before + i);
  }
  patchwork[0] = 0;
  patchwork[0] = 1;
  MUST(mprotect(patchwork, kPatches * 4096, PROT_READ));
  CHECK(fnv(patchwork, kPatches * 4096) == patches, "the content of many small mappings changed");
  // Room for a deeper stack than ever before.
  volatile char deep[1 << 20];
  deep[0] = deep[sizeof deep - 1] = 1;
  return ok();
}
