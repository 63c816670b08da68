// Much memory that stays as it is, a little that changes all the time: written,
// given back, mapped anew, moved, in a parent and in a child that was forked
// from it. Every page holds what the last one who wrote it has left there.
#include <sys/mman.h>
#include <sys/prctl.h>

#include "target.h"

enum { kPage = 4096, kWords = kPage / 8, kStill = 48 << 20, kHot = 1 << 20, kMoved = 16 * kPage };

static uint64_t value_of(size_t page, uint64_t round) { return page * 1000003 + round * 7919 + 1; }

static void fill(uint64_t* words, size_t pages, uint64_t round) {
  for (size_t page = 0; page < pages; page++)
    for (size_t i = 0; i < kWords; i++) words[page * kWords + i] = value_of(page, round);
}

static void compare(const char* what, const uint64_t* words, size_t pages, uint64_t round) {
  for (size_t page = 0; page < pages; page++)
    for (size_t i = 0; i < kWords; i++)
      CHECK(words[page * kWords + i] == value_of(page, round), "%s: word %zu of page %zu is %llx in round %llu", what,
            i, page, (unsigned long long)words[page * kWords + i], (unsigned long long)round);
}

static uint64_t* map(size_t length) {
  return MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

// Not beside what moves: mremap joins a mapping with its neighbour, and takes the userfaultfd from both, so that
// all of the neighbour would be written again (docs/design/0012-incremental.md).
static uint64_t* map_apart(size_t length) {
  char* place = MUST(mmap(NULL, length + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  MUST(mprotect(place + kPage, length, PROT_READ | PROT_WRITE));
  return (uint64_t*)(place + kPage);
}

static void change(const uint64_t* still) {
  uint64_t* hot = map(kHot);
  uint64_t* moved = map(kMoved);
  uint64_t* anew = map(kMoved);
  uint64_t* given_back = map(kMoved);
  uint64_t round = 1;
  fill(hot, kHot / kPage, round);
  fill(moved, kMoved / kPage, round);
  do {
    compare("hot", hot, kHot / kPage, round);
    compare("moved", moved, kMoved / kPage, round);
    round++;
    fill(hot, kHot / kPage, round);
    // Mapped anew, it must not come back as it was.
    MUST(mmap(anew, kMoved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
    CHECK(anew[0] == 0 && anew[kMoved / 8 - 1] == 0, "memory mapped anew is not empty");
    anew[0] = round;
    uint64_t* place = map(kMoved);
    moved = MUST(mremap(moved, kMoved, kMoved, MREMAP_MAYMOVE | MREMAP_FIXED, place));
    compare("moved", moved, kMoved / kPage, round - 1);
    fill(moved, kMoved / kPage, round);
    fill(given_back, kMoved / kPage, round);
    MUST(madvise(given_back, kMoved, MADV_DONTNEED));
    pause_ms(1);
    for (size_t i = 0; i < kMoved / 8; i++) CHECK(given_back[i] == 0, "memory that was given back is there again");
  } while (access("/check", F_OK) != 0);
  compare("still", still, kStill / kPage, 0);
}

int main(void) {
  uint64_t* still = map_apart(kStill);
  fill(still, kStill / kPage, 0);
  const pid_t child = MUST(fork());
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    change(still);
    _exit(0);
  }
  printf("READY\n");
  fflush(stdout);
  change(still);
  int status = 0;
  MUST(waitpid(child, &status, 0));
  CHECK(status == 0, "the child has found a mistake: status %x", status);
  return ok();
}
