// Two seccomp filters on top of each other, the second one on one thread only.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>

#include "target.h"

static void refuse(int system_call, int error) {
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)system_call, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof code / sizeof *code, code};
  MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
}

static int errno_of(int system_call) { return syscall(system_call, 0, 0, 0) == -1 ? errno : 0; }

static volatile int go, installed;
static void* more_restricted(void* unused) {
  refuse(SYS_getitimer, 66);
  installed = 1;
  while (!go) pause_ms(2);
  CHECK(errno_of(SYS_getpriority) == 77, "thread: getpriority gives %d", errno_of(SYS_getpriority));
  CHECK(errno_of(SYS_getitimer) == 66, "thread: getitimer gives %d", errno_of(SYS_getitimer));
  return unused;
}

int main(void) {
  refuse(SYS_getpriority, 77);
  pthread_t thread;
  pthread_create(&thread, NULL, more_restricted, NULL);
  while (!installed) pause_ms(1);

  wait_for_check();

  CHECK(errno_of(SYS_getpriority) == 77, "getpriority gives %d", errno_of(SYS_getpriority));
  CHECK(errno_of(SYS_getitimer) == EFAULT || errno_of(SYS_getitimer) == 0, "getitimer gives %d",
        errno_of(SYS_getitimer));
  CHECK(errno_of(SYS_getppid) == 0, "a call that was allowed is not any more");
  go = 1;
  pthread_join(thread, NULL);
  char* status = read_file("/proc/self/status");
  CHECK(strcmp(status_line(status, "Seccomp"), "\t2") == 0, "the mode is %s", status_line(status, "Seccomp"));
  return ok();
}
