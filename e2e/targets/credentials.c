// User and group ids, supplementary groups, all capability sets, no_new_privs, securebits; a child that has less.
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>

#include "target.h"

static const char* lines[] = {"Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"};

static void describe(char* out) {
  char* status = read_file("/proc/self/status");
  out[0] = 0;
  for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
    strcat(strcat(strcat(strcat(out, lines[i]), ":"), status_line(status, lines[i])), "\n");
  }
  sprintf(out + strlen(out), "securebits %d dumpable %d keepcaps %d", prctl(PR_GET_SECUREBITS), prctl(PR_GET_DUMPABLE),
          prctl(PR_GET_KEEPCAPS));
  free(status);
}

int main(void) {
  int request[2], answer[2];
  MUST(pipe(request));
  MUST(pipe(answer));
  if (MUST(fork()) == 0) {
    MUST(prctl(PR_CAPBSET_DROP, CAP_NET_BIND_SERVICE));
    MUST(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP));
    gid_t groups[] = {1000, 2000, 3000};
    MUST(setgroups(3, groups));
    MUST(setresgid(1000, 1001, 1002));
    MUST(setresuid(1000, 1001, 1002));
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{0}};
    data[0].permitted = (1u << CAP_KILL) | (1u << CAP_AUDIT_WRITE % 32);
    data[0].effective = 1u << CAP_KILL;
    data[0].inheritable = 1u << CAP_KILL;
    MUST(syscall(SYS_capset, &header, data));
    MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0));
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    char text[4096];
    for (char byte; read(request[0], &byte, 1) == 1;) {
      describe(text);
      MUST(write(answer[1], text, sizeof text));
    }
    _exit(0);
  }
  char own_before[4096], own_after[4096], child_before[4096], child_after[4096];
  describe(own_before);
  MUST(write(request[1], "?", 1));
  MUST(read(answer[0], child_before, sizeof child_before));

  wait_for_check();

  describe(own_after);
  CHECK(strcmp(own_before, own_after) == 0, "own credentials changed to\n%s\nfrom\n%s", own_after, own_before);
  MUST(write(request[1], "?", 1));
  MUST(read(answer[0], child_after, sizeof child_after));
  CHECK(strcmp(child_before, child_after) == 0, "the child's credentials changed to\n%s\nfrom\n%s", child_after,
        child_before);
  return ok();
}
