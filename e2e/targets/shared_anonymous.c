// Shared anonymous memory: one object in several processes at other addresses,
// offsets and protections, mapped twice in one, in part in another; sparse ones;
// and numbers that two processes write all the time, in shared and in private
// memory, which agree at every single moment.
#include <sched.h>
#include <sys/mman.h>

#include "target.h"

enum { kPage = 4096, kPages = 64, kSparsePages = 1 << 18, kRows = 2048 };

// Two writers take turns: whose turn it is finds every row at the other's number, and leaves it at the next one, in
// shared memory and in a page of its own.
struct board {
  volatile uint64_t turn;
  volatile uint64_t rows[kRows];
  volatile uint64_t stop;
};

static void* share(size_t length) {
  return MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
}

// `mine` is the last turn that this one has had. If shared and private memory, or that of the two processes, came from
// different moments, the numbers would not fit.
static void take_turns(struct board* board, uint64_t mine) {
  volatile uint64_t* own =
      MUST(mmap(NULL, (size_t)kRows * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  for (int row = 0; row < kRows; row++) own[row * (kPage / 8)] = mine;
  while (!board->stop) {
    const uint64_t turn = board->turn;
    CHECK(turn == mine || turn == mine + 1, "turn %llu, and I had %llu", (unsigned long long)turn,
          (unsigned long long)mine);
    if (turn == mine) {
      sched_yield();
      continue;
    }
    for (int row = 0; row < kRows; row++) {
      volatile uint64_t* mirror = own + row * (kPage / 8);
      CHECK(board->rows[row] == turn && *mirror == mine, "row %d is %llu, here %llu, in turn %llu", row,
            (unsigned long long)board->rows[row], (unsigned long long)*mirror, (unsigned long long)turn);
      board->rows[row] = turn + 1;
      *mirror = turn + 1;
    }
    mine = turn + 1;
    board->turn = mine;
  }
}

static void expect_name(const void* address, const char* permissions) {
  FILE* maps = fopen("/proc/self/maps", "r");
  CHECK(maps != NULL, "/proc/self/maps");
  char line[512], found[64];
  snprintf(found, sizeof found, "%lx-", (unsigned long)address);
  while (fgets(line, sizeof line, maps)) {
    if (strncmp(line, found, strlen(found)) != 0) continue;
    fclose(maps);
    CHECK(strstr(line, "/dev/zero (deleted)") != NULL, "the mapping is %s", line);
    CHECK(strncmp(strchr(line, ' ') + 1, permissions, 4) == 0, "wanted %s: %s", permissions, line);
    return;
  }
  CHECK(0, "nothing is mapped at %p", address);
}

static unsigned char byte_of(int page, int i) { return (unsigned char)(page * 31 + i * 7 + 1); }

static void check_pages(const unsigned char* memory, int from, int count) {
  for (int page = 0; page < count; page++)
    for (int i = 0; i < kPage; i += 64)
      CHECK(memory[page * kPage + i] == byte_of(from + page, i), "page %d, byte %d is %d", from + page, i,
            memory[page * kPage + i]);
}

int main(void) {
  unsigned char* whole = share(kPages * kPage);
  for (int page = 0; page < kPages; page++)
    for (int i = 0; i < kPage; i++) whole[page * kPage + i] = byte_of(page, i);
  unsigned char* sparse = share((size_t)kSparsePages * kPage);  // 1 GiB
  sparse[0] = 1;
  sparse[(size_t)kPage * 100000 + 5] = 2;
  sparse[(size_t)kSparsePages * kPage - 1] = 3;
  unsigned char* empty = share(kPage * 8);
  struct board* board = share(sizeof *board);
  // What lies beyond can be had back as long as the memory lives.
  unsigned char* shortened = share(kPage * 16);
  shortened[kPage * 15] = 77;
  MUST(munmap(shortened + kPage * 4, kPage * 12));

  board->turn = 1;
  for (int row = 0; row < kRows; row++) board->rows[row] = 1;
  pid_t writers[2];
  for (int i = 0; i < 2; i++) {
    writers[i] = MUST(fork());
    if (writers[i] != 0) continue;
    take_turns(board, (uint64_t)i);
    _exit(0);
  }
  const pid_t reader = MUST(fork());
  if (reader == 0) {
    // Another address, an offset, read only; and the rest not at all.
    unsigned char* part = MUST(mremap(whole + 8 * kPage, 0, 16 * kPage, MREMAP_MAYMOVE));
    MUST(mprotect(part, 16 * kPage, PROT_READ));
    MUST(munmap(whole, kPages * kPage));
    MUST(munmap(sparse + 10 * kPage, (size_t)(kSparsePages - 10) * kPage));
    while (access("/check", F_OK) != 0) pause_ms(5);
    check_pages(part, 8, 16);
    expect_name(part, "r--s");
    CHECK(sparse[0] == 1 && sparse[9 * kPage] == 0, "the sparse memory of the reader");
    // What this one writes the other sees.
    while (empty[0] != 1) pause_ms(1);
    empty[kPage] = 42;
    _exit(0);
  }
  // Mapped twice, and one page without access.
  unsigned char* again = MUST(mremap(whole, 0, kPages * kPage, MREMAP_MAYMOVE));
  MUST(mprotect(again + 5 * kPage, kPage, PROT_NONE));

  wait_for_check();
  const uint64_t before = board->turn;
  while (board->turn < before + 6) pause_ms(1);
  board->stop = 1;
  int status = 0;
  for (int i = 0; i < 2; i++) {
    MUST(waitpid(writers[i], &status, 0));
    CHECK(status == 0, "writer %d ended with status %x", i, status);
  }

  check_pages(whole, 0, kPages);
  check_pages(again, 0, 5);
  expect_name(whole, "rw-s");
  MUST(mprotect(again + 5 * kPage, kPage, PROT_READ | PROT_WRITE));
  again[5 * kPage + 3] = 99;
  CHECK(whole[5 * kPage + 3] == 99, "two mappings of one memory differ");
  CHECK(sparse[0] == 1 && sparse[(size_t)kPage * 100000 + 5] == 2 && sparse[(size_t)kSparsePages * kPage - 1] == 3,
        "the sparse memory");
  unsigned char present[kSparsePages / 64];
  MUST(mincore(sparse + (size_t)kPage * 1024, sizeof present * (size_t)kPage, present));
  for (size_t i = 0; i < sizeof present; i++) CHECK(!(present[i] & 1), "page %zu of a hole is there", 1024 + i);
  unsigned char* longer = MUST(mremap(shortened, 4 * kPage, 16 * kPage, MREMAP_MAYMOVE));
  CHECK(longer[kPage * 15] == 77, "what was not mapped is lost");
  empty[0] = 1;
  while (empty[kPage] != 42) pause_ms(1);
  MUST(waitpid(reader, &status, 0));
  CHECK(status == 0, "the reader ended with status %x", status);
  return ok();
}
