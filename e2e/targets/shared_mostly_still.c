// Much shared memory that stays as it is, and a few pages of it that change all the
// time by everything that can write: mappings of two processes, write(2), a hole
// that is punched. A memfd, anonymous memory and a System V segment.
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>

#include "target.h"

enum { kPage = 4096, kWords = kPage / 8, kStride = 256, kMemfd = 64 << 20, kOther = 16 << 20 };
enum writer { kParent, kChild, kCall, kHole, kWriters };

struct region {
  uint64_t* words;
  size_t pages;
  int fd;  // -1: it has none
};

static uint64_t value_of(size_t page, uint64_t round) { return page * 1000003 + round * 7919 + 1; }

// One page in kStride changes, written by one of the writers.
static size_t hot_page(size_t index, enum writer writer) { return index * kStride + (size_t)writer * 37 + 5; }

static void fill(uint64_t* page, size_t number, uint64_t round) {
  for (size_t i = 0; i < kWords; i++) page[i] = value_of(number, round);
}

static void expect(const struct region* region, size_t number, uint64_t round, int is_hole) {
  const uint64_t* page = region->words + number * kWords;
  for (size_t i = 0; i < kWords; i++)
    CHECK(page[i] == (is_hole ? 0 : value_of(number, round)), "word %zu of page %zu is %llx in round %llu", i, number,
          (unsigned long long)page[i], (unsigned long long)round);
}

static int is_hole_in(uint64_t round) { return round % 2 == 1; }

static void write_as(const struct region* region, enum writer writer, size_t number, uint64_t round) {
  if (writer == kParent || writer == kChild) {
    fill(region->words + number * kWords, number, round);
    return;
  }
  const off_t offset = (off_t)(number * kPage);
  if (writer == kHole && is_hole_in(round)) {
    MUST(fallocate(region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, kPage));
    return;
  }
  uint64_t page[kWords];
  fill(page, number, round);
  CHECK(MUST(pwrite(region->fd, page, kPage, offset)) == kPage, "pwrite");
}

// Until it is to be checked, each round writes one more of the hot pages of each writer: `rounds` tells what is there.
static void change(const struct region* regions, size_t count, const enum writer* writers, size_t writer_count) {
  static uint64_t rounds[3][kWriters][kMemfd / kPage / kStride];
  uint64_t round = 1;
  do {
    for (size_t r = 0; r < count; r++)
      for (size_t w = 0; w < writer_count; w++) {
        const size_t hot = regions[r].pages / kStride;
        const size_t index = round % hot;
        if (regions[r].fd < 0 && writers[w] > kChild) continue;
        write_as(&regions[r], writers[w], hot_page(index, writers[w]), round);
        rounds[r][writers[w]][index] = round;
      }
    round++;
    pause_ms(1);
  } while (access("/check", F_OK) != 0);
  for (size_t r = 0; r < count; r++)
    for (size_t w = 0; w < writer_count; w++)
      for (size_t index = 0; index < regions[r].pages / kStride; index++) {
        const uint64_t written = rounds[r][writers[w]][index];
        expect(&regions[r], hot_page(index, writers[w]), written, writers[w] == kHole && is_hole_in(written));
      }
}

static int is_hot(size_t number) {
  for (int writer = 0; writer < kWriters; writer++)
    if (number % kStride == hot_page(0, writer)) return 1;
  return 0;
}

int main(void) {
  struct region regions[3] = {{NULL, kMemfd / kPage, -1}, {NULL, kOther / kPage, -1}, {NULL, kOther / kPage, -1}};
  regions[0].fd = MUST(memfd_create("still", 0));
  MUST(ftruncate(regions[0].fd, kMemfd));
  regions[0].words = MUST(mmap(NULL, kMemfd, PROT_READ | PROT_WRITE, MAP_SHARED, regions[0].fd, 0));
  regions[1].words = MUST(mmap(NULL, kOther, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  const int segment = MUST(shmget(IPC_PRIVATE, kOther, IPC_CREAT | 0600));
  regions[2].words = MUST(shmat(segment, NULL, 0));
  for (size_t r = 0; r < 3; r++)
    for (size_t page = 0; page < regions[r].pages; page++) fill(regions[r].words + page * kWords, page, 0);
  const pid_t child = MUST(fork());
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const enum writer own[] = {kChild};
    change(regions, 3, own, 1);
    _exit(0);
  }
  printf("READY\n");
  fflush(stdout);
  const enum writer own[] = {kParent, kCall, kHole};
  change(regions, 3, own, 3);
  int status = 0;
  MUST(waitpid(child, &status, 0));
  CHECK(status == 0, "the child has found a mistake: status %x", status);
  for (size_t r = 0; r < 3; r++)
    for (size_t page = 0; page < regions[r].pages; page++)
      if (!is_hot(page)) expect(&regions[r], page, 0, 0);
  return ok();
}
