// Memory that is written all the time, in two processes, while copies of it may
// be made: every word of every page is compared with what the writer has left
// there the last time. Memory that a fork leaves out or empties, and locked
// memory, keep what is in them; and nobody hears of children that are none.
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "target.h"

enum { kPage = 4096, kWords = kPage / 8, kLarge = 32 << 20, kSmall = 8 << 20, kSpecial = 16 * kPage };

static volatile sig_atomic_t children_heard;

static void hear_child(int signal) {
  (void)signal;
  children_heard++;
}

struct writer {
  uint64_t* memory;
  size_t pages;
  volatile uint64_t rounds;
  volatile int stop;
};

static void* write_for_ever(void* argument) {
  struct writer* writer = argument;
  for (uint64_t round = 1; !writer->stop; round++) {
    for (size_t page = 0; page < writer->pages; page++) {
      uint64_t* words = writer->memory + page * kWords;
      for (size_t i = 0; i < kWords; i++) {
        CHECK(words[i] == (round - 1) * 1000003 + page, "word %zu of page %zu is %llx in round %llu", i, page,
              (unsigned long long)words[i], (unsigned long long)round);
        words[i] = round * 1000003 + page;
      }
    }
    writer->rounds = round;
  }
  return NULL;
}

static void start(struct writer* writer, pthread_t* thread, size_t length) {
  writer->memory = MUST(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  writer->pages = length / kPage;
  for (size_t page = 0; page < writer->pages; page++)
    for (size_t i = 0; i < kWords; i++) writer->memory[page * kWords + i] = page;
  CHECK(pthread_create(thread, NULL, write_for_ever, writer) == 0, "pthread_create");
}

static void finish(struct writer* writer, pthread_t thread) {
  const uint64_t before = writer->rounds;
  while (writer->rounds < before + 2) pause_ms(1);
  writer->stop = 1;
  pthread_join(thread, NULL);
}

static unsigned char* special_memory(int advice) {
  unsigned char* memory = MUST(mmap(NULL, kSpecial, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  for (int i = 0; i < kSpecial; i++) memory[i] = (unsigned char)(i * 7 + advice);
  if (advice == 0) {
    MUST(mlock(memory, kSpecial));
  } else {
    MUST(madvise(memory, kSpecial, advice));
  }
  return memory;
}

static void check_special(const unsigned char* memory, int advice) {
  for (int i = 0; i < kSpecial; i++)
    CHECK(memory[i] == (unsigned char)(i * 7 + advice), "byte %d of memory with advice %d is %d", i, advice, memory[i]);
}

int main(int argc, char** argv) {
  const int with_special = argc > 1 && strcmp(argv[1], "special") == 0;
  signal(SIGCHLD, hear_child);
  pid_t child = MUST(fork());
  struct writer writer = {0};
  pthread_t thread;
  start(&writer, &thread, child == 0 ? kSmall : kLarge);
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (access("/check", F_OK) != 0) pause_ms(5);
    finish(&writer, thread);
    _exit(children_heard);
  }
  static const int advices[] = {0, MADV_DONTFORK, MADV_WIPEONFORK};
  unsigned char* special[3] = {NULL};
  for (int i = 0; with_special && i < 3; i++) special[i] = special_memory(advices[i]);

  // As many as there are: two processes with two threads each.
  if (argc > 1 && strcmp(argv[1], "limited") == 0) MUST(setrlimit(RLIMIT_NPROC, &(struct rlimit){4, 4}));

  wait_for_check();
  finish(&writer, thread);
  for (int i = 0; with_special && i < 3; i++) check_special(special[i], advices[i]);
  CHECK(children_heard <= 1, "%d children ended, and there was one", (int)children_heard);
  int status = 0;
  MUST(waitpid(child, &status, 0));
  CHECK(status == 0, "the child ended with status %x", status);
  // Not even whoever asks for all kinds of children finds one.
  CHECK(waitpid(-1, &status, WNOHANG | __WALL) == -1 && errno == ECHILD, "there is another child");
  return ok();
}
