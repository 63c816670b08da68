// System V semaphores: keys, ids, modes and values, and a process that waits for one.
#include <sys/ipc.h>
#include <sys/sem.h>

#include "target.h"

static void operate(int id, unsigned short number, short by) {
  struct sembuf operation = {number, by, 0};
  while (semop(id, &operation, 1) == -1) CHECK(errno == EINTR, "semop: %s", strerror(errno));
}

int main(void) {
  const int passing = MUST(semget(IPC_PRIVATE, 1, IPC_CREAT | 0600));
  const int id = MUST(semget(0x4321, 5, IPC_CREAT | IPC_EXCL | 0640));
  MUST(semctl(passing, 0, IPC_RMID));
  const int other = MUST(semget((key_t)0x87654321, 250, IPC_CREAT | IPC_EXCL | 0600));
  unsigned short values[5] = {1, 0, 32767, 7, 0};
  MUST(semctl(id, 0, SETALL, values));
  for (int i = 0; i < 250; i++) MUST(semctl(other, i, SETVAL, i * 3));

  const pid_t child = MUST(fork());
  if (child == 0) {
    operate(id, 4, -2);
    operate(id, 1, 1);
    _exit(0);
  }
  // The child waits, or will in a moment.
  while (MUST(semctl(id, 4, GETNCNT)) == 0) pause_ms(1);

  wait_for_check();
  CHECK(MUST(semget(0x4321, 0, 0)) == id && MUST(semget((key_t)0x87654321, 0, 0)) == other, "ids");
  struct semid_ds status;
  MUST(semctl(id, 0, IPC_STAT, &status));
  CHECK(status.sem_nsems == 5 && (status.sem_perm.mode & 0777) == 0640, "%lu semaphores, mode %o",
        (unsigned long)status.sem_nsems, status.sem_perm.mode);
  unsigned short found[5];
  MUST(semctl(id, 0, GETALL, found));
  CHECK(memcmp(found, values, sizeof values) == 0, "values %d %d %d %d %d", found[0], found[1], found[2], found[3],
        found[4]);
  for (int i = 0; i < 250; i++) CHECK(MUST(semctl(other, i, GETVAL)) == i * 3, "semaphore %d", i);
  operate(id, 4, 2);
  operate(id, 1, -1);
  int code = 0;
  MUST(waitpid(child, &code, 0));
  CHECK(code == 0, "the child ended with status %x", code);
  return ok();
}
