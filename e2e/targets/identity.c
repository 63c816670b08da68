// What a process is to others: command name and line, executable, working directory, root, umask, environment.
#include <sys/prctl.h>
#include <sys/stat.h>

#include "target.h"

static char* link_of(const char* path) {
  char text[4096] = {0};
  MUST(readlink(path, text, sizeof text - 1));
  return strdup(text);
}

static char* raw(const char* path, size_t* size) {
  int fd = MUST(open(path, O_RDONLY));
  char* text = calloc(1, 65536);
  *size = (size_t)MUST(read(fd, text, 65536));
  close(fd);
  return text;
}

int main(int argc, char** argv) {
  (void)argc;
  MUST(prctl(PR_SET_NAME, "odd ) name"));
  MUST(chdir("/data"));
  MUST(mkdir("/data/jail", 0755));
  MUST(mkdir("/data/jail/inner", 0755));
  umask(0137);
  MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
  int request[2], answer[2];
  MUST(pipe(request));
  MUST(pipe(answer));
  if (MUST(fork()) == 0) {
    MUST(chroot("/data/jail"));
    MUST(chdir("/inner"));
    char byte;
    MUST(read(request[0], &byte, 1));
    char here[256];
    CHECK(getcwd(here, sizeof here) != NULL && strcmp(here, "/inner") == 0, "the child is in %s", here);
    CHECK(access("/inner", F_OK) == 0 && access("/data", F_OK) == -1, "the child's root has changed");
    MUST(write(answer[1], "k", 1));
    _exit(0);
  }
  size_t sizes[6];
  char* before[] = {link_of("/proc/self/exe"), raw("/proc/self/cmdline", &sizes[0]),
                    raw("/proc/self/environ", &sizes[1]), raw("/proc/self/auxv", &sizes[2])};

  wait_for_check();

  char name[16];
  MUST(prctl(PR_GET_NAME, name));
  CHECK(strcmp(name, "odd ) name") == 0, "the name is %s", name);
  char here[256];
  CHECK(getcwd(here, sizeof here) != NULL && strcmp(here, "/data") == 0, "the working directory is %s", here);
  CHECK(umask(0) == 0137, "the umask has changed");
  int subreaper = 0;
  MUST(prctl(PR_GET_CHILD_SUBREAPER, &subreaper));
  CHECK(subreaper == 1, "it is no subreaper any more");
  char* after[] = {link_of("/proc/self/exe"), raw("/proc/self/cmdline", &sizes[3]),
                   raw("/proc/self/environ", &sizes[4]), raw("/proc/self/auxv", &sizes[5])};
  CHECK(strcmp(before[0], after[0]) == 0, "exe is %s, was %s", after[0], before[0]);
  for (int i = 0; i < 3; i++) {
    CHECK(sizes[i] == sizes[i + 3] && memcmp(before[i + 1], after[i + 1], sizes[i]) == 0,
          "command line, environment or auxv (%d) changed", i);
  }
  CHECK(strstr(argv[0], "identity") != NULL, "argv[0] is %s", argv[0]);
  MUST(write(request[1], "?", 1));
  char byte;
  CHECK(read(answer[0], &byte, 1) == 1, "the child has failed");
  return ok();
}
