// What this kernel can do at best, on this machine and now: the bounds of what
// hack/bench measures. Prints milliseconds, as JSON.
//   bench_limits fork MIB                       a process with that much touched memory: {"first", "later"}
//   bench_limits copy MIB DIRECTORY THREADS     out of a file there, into fresh memory: {"mapped", ...}
//   bench_limits move DIRECTORY DIRECTORY       a task from one cgroup to the other: {"move"}
//   bench_limits threads N                      all of a process stopped, their registers read, and let go: {"stop"}
//   bench_limits processes N                    the same of that many processes, and as many forks: {"stop", "fork"}
//   bench_limits mappings N                     a process with that many: {"fork", "list"}, its /proc/PID/maps read;
//                                               and one of as many filled pages told apart: {"protect"}
#include <elf.h>
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
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
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

enum { kMostTasks = 100000, kXsaveRoom = 16384 };

// Of tasks that wait in the kernel: nothing is faster to stop. What a checkpoint
// cannot leave out: a stop of each, its registers and signal mask, its way on.
static double stop_ms(const pid_t* tasks, long count) {
  static unsigned char room[kXsaveRoom];
  for (long i = 0; i < count; i++)
    if (ptrace(PTRACE_SEIZE, tasks[i], 0, 0) != 0) die("PTRACE_SEIZE");
  const double start = now_ms();
  for (long i = 0; i < count; i++)
    if (ptrace(PTRACE_INTERRUPT, tasks[i], 0, 0) != 0) die("PTRACE_INTERRUPT");
  for (long i = 0; i < count; i++) {
    if (waitpid(tasks[i], NULL, __WALL) != tasks[i]) die("waitpid");
    struct iovec general = {room, sizeof room}, floating = {room, sizeof room};
    uint64_t mask;
    if (ptrace(PTRACE_GETREGSET, tasks[i], NT_PRSTATUS, &general) != 0 ||
        ptrace(PTRACE_GETREGSET, tasks[i], NT_X86_XSTATE, &floating) != 0 ||
        ptrace(PTRACE_GETSIGMASK, tasks[i], sizeof mask, &mask) != 0)
      die("registers");
  }
  for (long i = 0; i < count; i++)
    if (ptrace(PTRACE_DETACH, tasks[i], 0, 0) != 0) die("PTRACE_DETACH");
  return now_ms() - start;
}

// A forked child that answers one byte when it is ready and then waits; ended by end_child.
static pid_t start_child(void (*get_ready)(long, int), long count, int* answers) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) die("pipe2");
  const pid_t child = fork();
  if (child < 0) die("fork");
  if (child == 0) {
    close(ends[0]);
    get_ready(count, ends[1]);
    for (;;) pause();
  }
  close(ends[1]);
  *answers = ends[0];
  return child;
}

static void end_child(pid_t child, int answers) {
  close(answers);
  kill(child, SIGKILL);
  if (waitpid(child, NULL, 0) < 0) die("waitpid");
}

static void answer(int answers, pid_t task) {
  if (write(answers, &task, sizeof task) != sizeof task) die("write");
}

static void* answer_and_wait(void* answers) {
  answer((int)(intptr_t)answers, (pid_t)syscall(SYS_gettid));
  for (;;) pause();
  return NULL;
}

static void become_threads(long count, int answers) {
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 64 << 10);
  pthread_t thread;
  for (long i = 0; i < count; i++)
    if (pthread_create(&thread, &small, answer_and_wait, (void*)(intptr_t)answers) != 0) die("pthread_create");
}

static void become_processes(long count, int answers) {
  for (long i = 0; i < count; i++) {
    const pid_t child = fork();
    if (child < 0) die("fork");
    // Ends with its parent, which is killed.
    if (child == 0 && prctl(PR_SET_PDEATHSIG, SIGKILL) == 0)
      answer_and_wait((void*)(intptr_t)answers);
  }
}

static void become_mappings(long count, int answers) {
  // Two kinds in turn: neighbours of one kind would be one mapping.
  for (long i = 0; i < count; i++) {
    unsigned char* page = mmap(NULL, kPage, i % 2 ? PROT_READ | PROT_WRITE : PROT_READ | PROT_WRITE | PROT_EXEC,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) die("mmap");
    *page = 1;
  }
  // The fork is this process's own, as that of a twin is: the answer is its microseconds.
  const double elapsed = fork_ms();
  answer(answers, (pid_t)(elapsed * 1e3));
}

// What no restore of such neighbours is below: filled as one mapping, every other page gets another protection.
static void become_protected(long count, int answers) {
  unsigned char* pages = mmap(NULL, (size_t)count * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) die("mmap");
  memset(pages, 1, (size_t)count * kPage);
  const double start = now_ms();
  for (long i = 0; i < count; i += 2)
    if (mprotect(pages + i * kPage, kPage, PROT_READ | PROT_WRITE | PROT_EXEC) != 0) die("mprotect");
  answer(answers, (pid_t)((now_ms() - start) * 1e3));
}

static pid_t read_answer(int answers) {
  pid_t task;
  if (read(answers, &task, sizeof task) != sizeof task) die("read");
  return task;
}

static void measure_stop(void (*become)(long, int), long count, int with_forks) {
  if (count < 1 || count > kMostTasks) die("count");
  static pid_t tasks[kMostTasks];
  int answers;
  const pid_t child = start_child(become, count, &answers);
  for (long i = 0; i < count; i++) tasks[i] = read_answer(answers);
  printf("{\"stop\": %.3f", stop_ms(tasks, count));
  if (with_forks) {
    double forks = 0;
    for (long i = 0; i < count; i++) forks += fork_ms();
    printf(", \"fork\": %.3f", forks);
  }
  printf("}\n");
  end_child(child, answers);
}

static size_t read_whole(const char* path) {
  static char room[1 << 16];
  const int file = open(path, O_RDONLY);
  if (file < 0) die(path);
  size_t bytes = 0;
  for (ssize_t count; (count = read(file, room, sizeof room)) != 0; bytes += (size_t)count)
    if (count < 0) die(path);
  close(file);
  return bytes;
}

static void measure_mappings(long count) {
  int answers;
  const pid_t child = start_child(become_mappings, count, &answers);
  const double forked = read_answer(answers) / 1e3;
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/maps", child);
  const double start = now_ms();
  read_whole(path);
  printf("{\"fork\": %.3f, \"list\": %.3f", forked, now_ms() - start);
  end_child(child, answers);
  const pid_t other = start_child(become_protected, count, &answers);
  printf(", \"protect\": %.3f}\n", read_answer(answers) / 1e3);
  end_child(other, answers);
}

int main(int argc, char** argv) {
  if (argc == 3 && strcmp(argv[1], "fork") == 0) {
    measure_fork((size_t)atol(argv[2]) << 20);
  } else if (argc == 5 && strcmp(argv[1], "copy") == 0) {
    measure_copy((size_t)atol(argv[2]) << 20, argv[3], atol(argv[4]));
  } else if (argc == 4 && strcmp(argv[1], "move") == 0) {
    measure_move(argv[2], argv[3]);
  } else if (argc == 3 && strcmp(argv[1], "threads") == 0) {
    measure_stop(become_threads, atol(argv[2]), 0);
  } else if (argc == 3 && strcmp(argv[1], "processes") == 0) {
    measure_stop(become_processes, atol(argv[2]), 1);
  } else if (argc == 3 && strcmp(argv[1], "mappings") == 0) {
    measure_mappings(atol(argv[2]));
  } else {
    return 2;
  }
  return 0;
}
