// A process tree of a given kind and size that ticks: what hack/bench measures.
//   bench_load STATE-FILE KIND COUNT [DETAIL]   a load
//   bench_load init PROGRAM ARGUMENTS...        a first process that reaps
// The state file is a page of memory that outlives the tree: struct state.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { kPage = 4096 };

// Read by hack/bench/tree.ts: eight 64-bit numbers.
struct state {
  uint64_t ready;       // 1 when everything is set up
  uint64_t ticks;       // how often it has ticked
  uint64_t last_ns;     // when, CLOCK_REALTIME
  uint64_t gap_ns;      // longest time between two ticks since `reset`
  uint64_t gap_end_ns;  // when it ended
  uint64_t reset;       // set to 1 from outside
  uint64_t dirtied;     // bytes that were written again
  uint64_t reserved;
};

static volatile struct state* state;

// The one clock that is the same in every time namespace: CRIU restores into one of its own, in which the others go on
// from where they stood at the checkpoint.
static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void die(const char* what) {
  perror(what);
  _exit(1);
}

static void sleep_ns(long ns) {
  struct timespec time = {0, ns};
  nanosleep(&time, NULL);
}

static uint64_t random_state = 88172645463325252ull;
static uint64_t next_random(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  return random_state ^= random_state << 17;
}

static void raise_files(void) {
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

static unsigned char* make_memory(size_t bytes, int mostly_zero) {
  unsigned char* memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) die("mmap");
  for (size_t page = 0; page < bytes; page += kPage) {
    if (mostly_zero && (page / kPage) % 10 != 0) {
      memory[page] = 1;  // touched, and zero again
      memory[page] = 0;
      continue;
    }
    for (size_t i = 0; i < kPage; i += 8) *(uint64_t*)(memory + page + i) = next_random();
  }
  return memory;
}

struct dirtier {
  unsigned char* memory;
  size_t bytes;
  size_t per_ms;
};

static void* dirty(void* argument) {
  const struct dirtier* job = argument;
  uint64_t next = now_ns();
  for (size_t page = 0;;) {
    for (size_t done = 0; done < job->per_ms; done += kPage) {
      job->memory[page]++;
      page = (page + kPage) % job->bytes;
    }
    state->dirtied += job->per_ms;
    next += 1000000;
    const uint64_t now = now_ns();
    if (next > now) {
      sleep_ns((long)(next - now));
    } else if (now - next > 100000000) {
      next = now;
    }
  }
  return NULL;
}

static void* idle(void* argument) {
  for (;;) pause();
  return argument;
}

static void make_threads(long count) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 65536);
  pthread_t thread;
  for (long i = 0; i < count; i++)
    if (pthread_create(&thread, &attributes, idle, NULL) != 0) die("pthread_create");
}

static void make_processes(long count) {
  for (long i = 0; i < count; i++) {
    const pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      idle(NULL);
    }
  }
}

static void make_files(long count, const char* directory) {
  raise_files();
  char path[4096];
  for (long i = 0; i < count; i++) {
    snprintf(path, sizeof path, "%s/file-%ld", directory, i);
    if (open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) < 0) die(path);
  }
}

// Every other page has another protection, so that mappings do not merge.
static void make_mappings(long count) {
  unsigned char* memory = mmap(NULL, (size_t)count * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) die("mmap");
  for (long i = 0; i < count; i++) memory[i * kPage] = 1;
  for (long i = 1; i < count; i += 2)
    if (mprotect(memory + i * kPage, kPage, PROT_READ) != 0) die("mprotect");
}

static void make_sockets(long count) {
  raise_files();
  for (long i = 0; i < count; i++) {
    int ends[2];
    if ((i % 2 ? pipe(ends) : socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) != 0) die("socketpair");
  }
}

static int run_init(char** arguments) {
  const pid_t child = fork();
  if (child < 0) die("fork");
  if (child == 0) {
    execv(arguments[0], arguments);
    die(arguments[0]);
  }
  for (;;) {
    int status = 0;
    const pid_t ended = wait(&status);
    if (ended == child) return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    if (ended < 0 && errno != EINTR) return 1;
  }
}

int main(int argc, char** argv) {
  if (argc > 2 && strcmp(argv[1], "init") == 0) return run_init(argv + 2);
  if (argc < 4) return 2;
  const char* kind = argv[2];
  const long count = atol(argv[3]);
  const char* detail = argc > 4 ? argv[4] : "";
  const int file = open(argv[1], O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, kPage) != 0) die(argv[1]);
  state = mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (state == MAP_FAILED) die("mmap");
  close(file);

  static struct dirtier job;
  pthread_t thread;
  if (strcmp(kind, "memory") == 0) make_memory((size_t)count << 20, strcmp(detail, "zero") == 0);
  if (strcmp(kind, "dirty") == 0) {
    job = (struct dirtier){make_memory((size_t)count << 20, 0), (size_t)count << 20, 500u * 1000};
    if (pthread_create(&thread, NULL, dirty, &job) != 0) die("pthread_create");
  }
  if (strcmp(kind, "change") == 0) {
    // The first DETAIL MiB change all the time, the rest never.
    job = (struct dirtier){make_memory((size_t)count << 20, 0), (size_t)atol(detail) << 20, 64u * kPage};
    if (pthread_create(&thread, NULL, dirty, &job) != 0) die("pthread_create");
  }
  if (strcmp(kind, "processes") == 0) make_processes(count - 1);
  if (strcmp(kind, "files") == 0) make_files(count, detail);
  if (strcmp(kind, "mappings") == 0) make_mappings(count);
  if (strcmp(kind, "threads") == 0) make_threads(count - 1);
  if (strcmp(kind, "sockets") == 0) make_sockets(count);

  uint64_t last = now_ns();
  state->ready = 1;
  for (;;) {
    sleep_ns(100000);
    const uint64_t now = now_ns();
    if (state->reset) {
      state->reset = 0;
      state->gap_ns = 0;
    }
    // The clock may be set back.
    if (now > last && now - last > state->gap_ns) {
      state->gap_ns = now - last;
      state->gap_end_ns = now;
    }
    state->last_ns = last = now;
    state->ticks++;
  }
}
