// Inotify instances: watches on a file, directories and a link itself, numbers with gaps, an instance that two
// processes share, one in an epoll; one-shot watches. After the checks nothing may be told that nobody did.
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/stat.h>

#include "target.h"

static int next_event(int instance, int* watch, uint32_t* mask, char* name) {
  static char buffer[4096] __attribute__((aligned(8)));
  static ssize_t left = 0;
  static char* at = buffer;
  if (left <= 0) {
    left = read(instance, buffer, sizeof buffer);
    at = buffer;
    if (left <= 0) return 0;
  }
  struct inotify_event* event = (struct inotify_event*)at;
  *watch = event->wd;
  *mask = event->mask;
  strcpy(name, event->len != 0 ? event->name : "");
  at += sizeof *event + event->len;
  left -= (ssize_t)(sizeof *event + event->len);
  return 1;
}

static void expect(int instance, int watch, uint32_t mask, const char* name) {
  int got_watch;
  uint32_t got_mask;
  char got_name[256];
  CHECK(next_event(instance, &got_watch, &got_mask, got_name), "no event, not %#x of watch %d", mask, watch);
  CHECK(got_watch == watch && got_mask == mask && strcmp(got_name, name) == 0,
        "watch %d mask %#x name \"%s\", not %d %#x \"%s\"", got_watch, got_mask, got_name, watch, mask, name);
}

static void expect_none(int instance) {
  int watch;
  uint32_t mask;
  char name[256];
  if (next_event(instance, &watch, &mask, name)) FAIL("watch %d tells %#x of \"%s\"", watch, mask, name);
}

static void make_file(const char* path) { close(MUST(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644))); }

int main(int count, char** arguments) {
  // A place that this process may write to: the root file system, or what is mounted there.
  const char* base = count > 1 ? arguments[1] : "/data";
  MUST(mkdir(base, 0755) == -1 && errno != EEXIST ? -1 : 0);
  MUST(chdir(base));
  MUST(mkdir("far", 0755));
  MUST(mkdir("far/away", 0755));
  MUST(mkdir("far/away/below", 0755));
  make_file("far/away/file");
  make_file("config");
  make_file("old");
  MUST(symlink("config", "link"));
  // Not one that leads to what is watched.
  MUST(chdir("/"));
  char path[256];
#define AT(name) (snprintf(path, sizeof path, "%s/%s", base, name), path)

  int instance = MUST(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  int shared = MUST(inotify_init1(IN_NONBLOCK));
  int config = MUST(inotify_add_watch(instance, AT("config"), IN_ALL_EVENTS));
  int gone = MUST(inotify_add_watch(instance, AT("old"), IN_MODIFY));
  int directory = MUST(inotify_add_watch(instance, AT("far/away"), IN_ALL_EVENTS | IN_ONLYDIR));
  MUST(inotify_rm_watch(instance, gone));
  // Without what CRIU does not carry: a link is watched there as what it leads to, and IN_ONESHOT is lost.
  int plain = count > 2 && strcmp(arguments[2], "plain") == 0;
  uint32_t link_mask = IN_ATTRIB | IN_DELETE_SELF | IN_DONT_FOLLOW;
  int link = MUST(inotify_add_watch(instance, AT(plain ? "far" : "link"), link_mask));
  int once = MUST(inotify_add_watch(instance, AT("far/away/file"), IN_MODIFY | (plain ? 0 : IN_ONESHOT)));
  int other = MUST(inotify_add_watch(shared, AT("far/away/below"), IN_CREATE | IN_DELETE | IN_MOVE));
  expect(instance, gone, IN_IGNORED, "");
  CHECK(config == 1 && gone == 2 && directory == 3 && link == 4 && once == 5 && other == 1, "unexpected numbers");
  // A directory that the process uses, and asks to hear everything of.
  int used = MUST(inotify_init1(IN_NONBLOCK));
  int used_watch = MUST(inotify_add_watch(used, base, IN_ALL_EVENTS));
  int open_there = MUST(open(AT("config"), O_RDWR | O_CLOEXEC));
  int epoll = MUST(epoll_create1(EPOLL_CLOEXEC));
  struct epoll_event wanted = {.events = EPOLLIN, .data.u64 = 77};
  MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, instance, &wanted));
  expect(instance, config, IN_OPEN, "");
  expect(used, used_watch, IN_OPEN, "config");
  int child_done[2];
  MUST(pipe(child_done));
  pid_t child = MUST(fork());
  if (child == 0) {
    while (access("/check", F_OK) != 0) pause_ms(5);
    char name[256];
    snprintf(name, sizeof name, "%s/far/away/below/new", base);
    make_file(name);
    MUST(write(child_done[1], "x", 1));
    _exit(0);
  }

  wait_for_check();

  char letter;
  MUST(read(child_done[0], &letter, 1));
  struct epoll_event ready;
  expect_none(instance);
  expect_none(used);
  CHECK(MUST(epoll_wait(epoll, &ready, 1, 0)) == 0, "the epoll is ready of nothing");
  expect(shared, other, IN_CREATE, "new");
  expect_none(shared);
  MUST(write(open_there, "x", 1));
  CHECK(MUST(epoll_wait(epoll, &ready, 1, 1000)) == 1 && ready.data.u64 == 77, "the epoll is not ready");
  expect(instance, config, IN_MODIFY, "");
  expect(used, used_watch, IN_MODIFY, "config");
  make_file(AT("far/away/made"));
  expect(instance, directory, IN_CREATE, "made");
  expect(instance, directory, IN_OPEN, "made");
  expect(instance, directory, IN_CLOSE_WRITE, "made");
  int file = MUST(open(AT("far/away/file"), O_WRONLY | O_APPEND));
  expect(instance, directory, IN_OPEN, "file");
  MUST(write(file, "x", 1));
  expect(instance, directory, IN_MODIFY, "file");
  expect(instance, once, IN_MODIFY, "");
  if (!plain) {
    expect(instance, once, IN_IGNORED, "");
    MUST(write(file, "x", 1));
    expect(instance, directory, IN_MODIFY, "file");
  }
  close(file);
  expect(instance, directory, IN_CLOSE_WRITE, "file");
  if (plain) {
    MUST(chmod(AT("far"), 0700));
    expect(instance, link, IN_ATTRIB | IN_ISDIR, "");
  } else {
    MUST(unlink(AT("link")));
    expect(instance, link, IN_ATTRIB, "");
    expect(instance, link, IN_DELETE_SELF, "");
    expect(instance, link, IN_IGNORED, "");
  }
  int next = MUST(inotify_add_watch(instance, AT("old"), IN_MODIFY));
  CHECK(next == 6, "the next watch is %d", next);
  CHECK(MUST(inotify_add_watch(instance, AT("config"), IN_MODIFY)) == config, "config has another watch");
  MUST(inotify_rm_watch(instance, directory));
  expect(instance, directory, IN_IGNORED, "");
  CHECK((fcntl(instance, F_GETFD) & FD_CLOEXEC) != 0 && (fcntl(shared, F_GETFD) & FD_CLOEXEC) == 0, "close-on-exec");
  return ok();
}
