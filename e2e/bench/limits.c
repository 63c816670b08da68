// What this kernel can do at best, on this machine and now: the bounds of what
// hack/bench measures. Prints milliseconds, as JSON.
//   bench_limits fork MIB                       a process with that much touched memory: {"first", "later"}
//   bench_limits copy MIB DIRECTORY THREADS     out of a file there, into fresh memory: {"mapped", ...}
//   bench_limits move DIRECTORY DIRECTORY       a task from one cgroup to the other: {"move"}
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

enum { kPage = 4096, kPiece = 256 << 10, kHugePage = 2 << 20 };

static double now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static void die(const char* what) {
  perror(what);
  _exit(1);
}

static void fill_random(unsigned char* memory, size_t bytes) {
  static uint64_t random = 88172645463325252ull;
  for (size_t i = 0; i < bytes; i += 8) {
    random ^= random << 13;
    random ^= random >> 7;
    *(uint64_t*)(memory + i) = random ^= random << 17;
  }
}

static unsigned char* map(size_t bytes, int flags, int file) {
  unsigned char* memory =
      mmap(NULL, bytes, file < 0 ? PROT_READ | PROT_WRITE : PROT_READ, MAP_PRIVATE | flags, file, 0);
  if (memory == MAP_FAILED) die("mmap");
  return memory;
}

static double fork_ms(void) {
  const double start = now_ms();
  const pid_t child = fork();
  if (child < 0) die("fork");
  if (child == 0) _exit(0);
  const double elapsed = now_ms() - start;
  if (waitpid(child, NULL, 0) < 0) die("waitpid");
  return elapsed;
}

// In the first one pages are still writable, and the kernel's notes on them far from the processor.
static void measure_fork(size_t bytes) {
  fill_random(map(bytes, MAP_ANONYMOUS, -1), bytes);
  const double first = fork_ms();
  printf("{\"first\": %.3f, \"later\": %.3f}\n", first, fork_ms());
}

enum source { kMapped, kRead };
enum destination { kSmallPages, kHugePages };

struct copy {
  enum source source;
  enum destination destination;
  int hashed;
  int file, uffd;
  size_t bytes;
  const unsigned char* mapped;
  unsigned char* to;
  atomic_size_t next;
  atomic_ullong sum;  // so that no hash is left out
};

static void copy_piece(struct copy* job, size_t offset, size_t length, unsigned char* buffer) {
  const unsigned char* from = buffer;
  if (job->source == kMapped) {
    from = job->mapped + offset;
    if (madvise((void*)from, length, MADV_POPULATE_READ) != 0) die("madvise");
  } else if (pread(job->file, buffer, length, (off_t)offset) != (ssize_t)length) {
    die("pread");
  }
  for (size_t at = 0; job->hashed && at < length; at += kPage)
    job->sum += XXH3_128bits_withSeed(from + at, kPage, offset + at).low64;
  if (job->destination == kHugePages) {
    memcpy(job->to + offset, from, length);
    return;
  }
  struct uffdio_copy copy = {.dst = (uintptr_t)(job->to + offset), .src = (uintptr_t)from, .len = length};
  if (ioctl(job->uffd, UFFDIO_COPY, &copy) != 0) die("UFFDIO_COPY");
}

static void* copy_pieces(void* argument) {
  struct copy* job = argument;
  unsigned char* buffer = map(kPiece, MAP_ANONYMOUS, -1);
  for (size_t at; (at = atomic_fetch_add(&job->next, kHugePage)) < job->bytes;)
    for (size_t done = 0; done < kHugePage; done += kPiece) copy_piece(job, at + done, kPiece, buffer);
  munmap(buffer, kPiece);
  return NULL;
}

static double copy_ms(struct copy job, long threads) {
  unsigned char* memory = map(job.bytes + kHugePage, MAP_ANONYMOUS | MAP_NORESERVE, -1);
  job.to = (unsigned char*)(((uintptr_t)memory + kHugePage - 1) / kHugePage * kHugePage);
  const int huge = job.destination == kHugePages;
  // Refused where the kernel has no huge pages: then these are small ones, and the number says so.
  (void)madvise(job.to, job.bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  job.uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
  struct uffdio_api api = {.api = UFFD_API};
  if (job.uffd < 0 || ioctl(job.uffd, UFFDIO_API, &api) != 0) die("userfaultfd");
  struct uffdio_register all = {.range = {(uintptr_t)job.to, job.bytes}, .mode = UFFDIO_REGISTER_MODE_MISSING};
  if (!huge && ioctl(job.uffd, UFFDIO_REGISTER, &all) != 0) die("UFFDIO_REGISTER");
  const double start = now_ms();
  if (job.source == kMapped) job.mapped = map(job.bytes, 0, job.file);
  pthread_t helpers[8];
  if (threads < 1 || threads > 8) die("threads");
  for (long i = 1; i < threads; i++)
    if (pthread_create(&helpers[i], NULL, copy_pieces, &job) != 0) die("pthread_create");
  copy_pieces(&job);
  for (long i = 1; i < threads; i++) pthread_join(helpers[i], NULL);
  if (job.source == kMapped) munmap((void*)job.mapped, job.bytes);
  const double elapsed = now_ms() - start;
  close(job.uffd);
  munmap(memory, job.bytes + kHugePage);
  return elapsed;
}

static void measure_copy(size_t bytes, const char* directory, long threads) {
  const int file = open(directory, O_TMPFILE | O_RDWR, 0600);
  if (file < 0) die(directory);
  unsigned char* buffer = map(kHugePage, MAP_ANONYMOUS, -1);
  for (size_t done = 0; done < bytes; done += kHugePage) {
    fill_random(buffer, kHugePage);
    if (pwrite(file, buffer, kHugePage, (off_t)done) != kHugePage) die("pwrite");
  }
  const struct {
    const char* name;
    struct copy job;
  } kinds[] = {
      {"mapped", {.source = kMapped}},
      {"mapped, hashed", {.source = kMapped, .hashed = 1}},
      {"read", {.source = kRead}},
      {"read, hashed", {.source = kRead, .hashed = 1}},
      {"huge pages, read, hashed", {.source = kRead, .hashed = 1, .destination = kHugePages}},
  };
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
    struct copy job = kinds[i].job;
    job.file = file;
    job.bytes = bytes;
    printf("%s\"%s\": %.3f", i ? ", " : "{", kinds[i].name, copy_ms(job, threads));
  }
  printf("}\n");
}

static void enter(const char* directory, pid_t task) {
  char path[4096];
  snprintf(path, sizeof path, "%s/cgroup.procs", directory);
  const int file = open(path, O_WRONLY);
  if (file < 0 || dprintf(file, "%d", task) < 0) die(path);
  close(file);
}

static void measure_move(const char* from, const char* to) {
  const pid_t child = fork();
  if (child < 0) die("fork");
  if (child == 0)
    for (;;) pause();
  enter(from, child);
  const double start = now_ms();
  enter(to, child);
  printf("{\"move\": %.3f}\n", now_ms() - start);
  kill(child, SIGKILL);
  if (waitpid(child, NULL, 0) < 0) die("waitpid");
}

int main(int argc, char** argv) {
  if (argc == 3 && strcmp(argv[1], "fork") == 0) {
    measure_fork((size_t)atol(argv[2]) << 20);
  } else if (argc == 5 && strcmp(argv[1], "copy") == 0) {
    measure_copy((size_t)atol(argv[2]) << 20, argv[3], atol(argv[4]));
  } else if (argc == 4 && strcmp(argv[1], "move") == 0) {
    measure_move(argv[2], argv[3]);
  } else {
    return 2;
  }
  return 0;
}
