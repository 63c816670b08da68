// Memory that may still be on its way while the program uses it: touched at
// random, forked, moved, thrown away, protected and unmapped in small pieces,
// and every word compared with what must be there. Begins when /go is there.
#include <sys/mman.h>

#include "target.h"

enum { kPage = 4096, kWords = kPage / 8, kPiecePages = 24, kPieces = 1024 };

static uint64_t seed = 88172645463325252ull;

static uint64_t next_random(void) {
  seed ^= seed << 13;
  seed ^= seed >> 7;
  seed ^= seed << 17;
  return seed;
}

static uint64_t word_of(size_t page, size_t i) { return (page + 1) * 0x9e3779b97f4a7c15ull + i; }

static void fill_page(uint64_t* memory, size_t page) {
  for (size_t i = 0; i < kWords; i++) memory[i] = word_of(page, i);
}

static void check_page(const uint64_t* memory, size_t page, const char* what) {
  for (size_t i = 0; i < kWords; i++)
    CHECK(memory[i] == word_of(page, i), "word %zu of page %zu is %llx %s", i, page, (unsigned long long)memory[i],
          what);
}

static void check_zero(const uint64_t* memory, const char* what) {
  for (size_t i = 0; i < kWords; i++)
    CHECK(memory[i] == 0, "there is %llx where there must be zeros, %s", (unsigned long long)memory[i], what);
}

static void check_pages(const char* memory, size_t first, size_t count, const char* what) {
  for (size_t i = 0; i < count; i++) check_page((const uint64_t*)(memory + i * kPage), first + i, what);
}

static void treat_piece(char* memory, size_t first, uint64_t what) {
  const size_t length = kPiecePages * kPage;
  switch (what % 6) {
    case 0: {  // thrown away in part
      MUST(madvise(memory + 4 * kPage, 8 * kPage, MADV_DONTNEED));
      check_zero((uint64_t*)(memory + 4 * kPage), "after MADV_DONTNEED");
      check_zero((uint64_t*)(memory + 11 * kPage), "after MADV_DONTNEED");
      check_pages(memory, first, 4, "before what was thrown away");
      check_pages(memory + 12 * kPage, first + 12, kPiecePages - 12, "after what was thrown away");
      return;
    }
    case 1: {  // moved
      char* moved = MUST(mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      CHECK(mremap(memory, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, moved) == moved, "mremap: %s",
            strerror(errno));
      MUST(mmap(memory, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
      check_zero((uint64_t*)memory, "where something was moved away");
      check_pages(moved, first, kPiecePages, "after having been moved");
      MUST(munmap(moved, length));
      return;
    }
    case 2: {  // unmapped in the middle, and something else put there
      MUST(munmap(memory + 8 * kPage, 8 * kPage));
      MUST(mmap(memory + 8 * kPage, 8 * kPage, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
      for (size_t i = 8; i < 16; i++) check_zero((uint64_t*)(memory + i * kPage), "in a new mapping");
      check_pages(memory, first, 8, "before a hole");
      check_pages(memory + 16 * kPage, first + 16, kPiecePages - 16, "after a hole");
      return;
    }
    case 3: {  // cut into mappings of their own
      MUST(mprotect(memory + 3 * kPage, kPage, PROT_READ));
      MUST(mprotect(memory + 5 * kPage, kPage, PROT_NONE));
      check_pages(memory, first, 5, "beside protected pages");
      MUST(mprotect(memory + 5 * kPage, kPage, PROT_READ | PROT_WRITE));
      check_pages(memory, first, kPiecePages, "after having been protected");
      return;
    }
    case 4: {  // read by the kernel
      int pipes[2];
      MUST(pipe(pipes));
      CHECK(write(pipes[1], memory + 2 * kPage, 2 * kPage) == 2 * kPage, "write: %s", strerror(errno));
      char copy[2 * kPage];
      CHECK(read(pipes[0], copy, sizeof copy) == (ssize_t)sizeof copy, "read: %s", strerror(errno));
      CHECK(memcmp(copy, memory + 2 * kPage, sizeof copy) == 0, "a pipe brought something else");
      check_page((uint64_t*)(memory + 3 * kPage), first + 3, "after write(2)");
      close(pipes[0]);
      close(pipes[1]);
      return;
    }
    default: check_pages(memory, first, kPiecePages, "when touched");
  }
}

static pid_t fork_checker(char* memory, size_t first) {
  pid_t child = MUST(fork());
  if (child != 0) return child;
  for (size_t i = 0; i < 8; i++) {
    const size_t piece = next_random() % 128;
    check_pages(memory + piece * kPiecePages * kPage, first + piece * kPiecePages, kPiecePages, "in a child");
  }
  treat_piece(memory, first, 0);
  treat_piece(memory + kPiecePages * kPage, first + kPiecePages, 1);
  pid_t grandchild = MUST(fork());
  if (grandchild == 0) {
    check_pages(memory + 2 * kPiecePages * kPage, first + 2 * kPiecePages, kPiecePages, "in a grandchild");
    check_zero((uint64_t*)(memory + 4 * kPage), "in a grandchild, after MADV_DONTNEED");
    _exit(0);
  }
  int status = 0;
  MUST(waitpid(grandchild, &status, 0));
  _exit(status == 0 ? 0 : 1);
}

int main(int argc, char** argv) {
  const size_t ballast_mib = argc > 1 ? (size_t)atoi(argv[1]) : 64;
  const size_t pieces_pages = kPieces * kPiecePages, ballast_pages = ballast_mib * 256;
  char* pieces = MUST(mmap(NULL, pieces_pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  char* ballast = MUST(mmap(NULL, ballast_pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  for (size_t page = 0; page < pieces_pages; page++) fill_page((uint64_t*)(pieces + page * kPage), page);
  for (size_t page = 0; page < ballast_pages; page++) fill_page((uint64_t*)(ballast + page * kPage), page);
  printf("READY\n");
  fflush(stdout);
  while (access("/go", F_OK) != 0) pause_ms(1);
  printf("STARTED\n");
  fflush(stdout);

  // The first 128 pieces stay for children; the others in an order of chance, each once.
  static unsigned order[kPieces];
  for (unsigned i = 0; i < kPieces; i++) order[i] = i;
  for (unsigned i = kPieces - 1; i > 128; i--) {
    const unsigned other = 128 + (unsigned)(next_random() % (i - 127));
    const unsigned kept = order[i];
    order[i] = order[other];
    order[other] = kept;
  }
  pid_t children[16];
  unsigned child_count = 0;
  for (unsigned i = 128; i < kPieces; i++) {
    if (i % 56 == 16 && child_count < 16) children[child_count++] = fork_checker(pieces, 0);
    const size_t first = (size_t)order[i] * kPiecePages;
    treat_piece(pieces + first * kPage, first, next_random());
    const size_t page = next_random() % ballast_pages;
    check_page((uint64_t*)(ballast + page * kPage), page, "at random");
  }
  for (unsigned i = 0; i < child_count; i++) {
    int status = 0;
    MUST(waitpid(children[i], &status, 0));
    CHECK(status == 0, "child %u ended with status %x", i, status);
  }
  check_pages(pieces, 0, 128 * kPiecePages, "at the end");
  check_pages(ballast, 0, ballast_pages, "at the end");
  printf("FILLED\n");
  wait_for_check();
  check_pages(ballast, 0, ballast_pages, "after all");
  return ok();
}
