// Restartable sequences: the C library's registration is alive, the kernel still updates the cpu number.
#include <sched.h>
#include <sys/rseq.h>

#include "target.h"

static struct rseq* own(void) { return (struct rseq*)((char*)__builtin_thread_pointer() + __rseq_offset); }

int main(void) {
  CHECK(__rseq_size > 0, "the C library has not registered rseq");

  wait_for_check();

  // Registering again tells: EBUSY with the right signature and address means it is there.
  long again = syscall(SYS_rseq, own(), 32, 0, RSEQ_SIG);
  CHECK(again == -1 && errno == EBUSY, "the registration is lost: %ld, %s", again, strerror(errno));
  cpu_set_t all;
  MUST(sched_getaffinity(0, sizeof all, &all));
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &all)) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    MUST(sched_setaffinity(0, sizeof one, &one));
    sched_yield();
    CHECK((int)own()->cpu_id == cpu, "on cpu %d rseq says %d", cpu, (int)own()->cpu_id);
  }
  return ok();
}
