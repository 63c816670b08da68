// What every self-checking target has: it sets up, says READY, waits for the
// file /check, checks, and says OK or FAIL with a reason. It never knows what
// happens to it while it waits.
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

__attribute__((noreturn, format(printf, 3, 4))) static void target_fail(const char* file, int line, const char* format,
                                                                        ...) {
  char reason[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(reason, sizeof reason, format, arguments);
  va_end(arguments);
  printf("FAIL %s:%d: %s\n", file, line, reason);
  fflush(stdout);
  _exit(1);
}

#define FAIL(...) target_fail(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK(condition, ...)            \
  do {                                   \
    if (!(condition)) FAIL(__VA_ARGS__); \
  } while (0)
// For calls that set errno; the call's text is the message.
#define MUST(call)                                                                  \
  ({                                                                                \
    __auto_type result_ = (call);                                                   \
    if (result_ == (__typeof__(result_))-1) FAIL("%s: %s", #call, strerror(errno)); \
    result_;                                                                        \
  })

static inline void pause_ms(long ms) {
  struct timespec left = {ms / 1000, (ms % 1000) * 1000000};
  while (nanosleep(&left, &left) == -1 && errno == EINTR) {
  }
}

// Polling a file disturbs nothing that a target could want to check: no signal, no descriptor of its own.
static inline void wait_for_check(void) {
  printf("READY\n");
  fflush(stdout);
  while (access("/check", F_OK) != 0) pause_ms(5);
}

static inline int ok(void) {
  printf("OK\n");
  fflush(stdout);
  return 0;
}

// The whole of a small file such as /proc/self/status.
static inline char* read_file(const char* path) {
  int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
  size_t size = 0, room = 1 << 16;
  char* text = malloc(room);
  for (ssize_t got; (got = MUST(read(fd, text + size, room - size - 1))) > 0;) {
    size += (size_t)got;
    if (room - size < 4096) text = realloc(text, room *= 2);
  }
  text[size] = 0;
  close(fd);
  return text;
}

// The value of a "Name:\tvalue" line, in memory of its own.
static inline char* status_line(const char* text, const char* name) {
  size_t length = strlen(name);
  for (const char* line = text; line != NULL && *line != 0; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
    if (strncmp(line, name, length) == 0 && line[length] == ':') {
      const char* value = line + length + 1;
      return strndup(value, strcspn(value, "\n"));
    }
  }
  return strdup("(no such line)");
}

static inline void put_text(int fd, const char* text, off_t offset) {
  CHECK(MUST(pwrite(fd, text, strlen(text), offset)) == (ssize_t)strlen(text), "short write at %ld", (long)offset);
}

static inline void expect_text_at(int fd, const char* text, off_t offset) {
  char found[64] = "";
  CHECK(strlen(text) < sizeof found, "too long a text");
  CHECK(MUST(pread(fd, found, strlen(text), offset)) == (ssize_t)strlen(text), "short at %ld", (long)offset);
  CHECK(memcmp(found, text, strlen(text)) == 0, "wanted \"%s\", found \"%s\"", text, found);
}

static inline uint64_t fnv(const void* data, size_t size) {
  uint64_t hash = 1469598103934665603ull;
  for (size_t i = 0; i < size; i++) hash = (hash ^ ((const unsigned char*)data)[i]) * 1099511628211ull;
  return hash;
}
