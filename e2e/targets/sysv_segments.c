// System V shared memory: keys, ids, owners, modes and sizes; attached in two
// processes at other addresses, read-only, in part, twice, not at all, and
// removed while attached.
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>

#include "target.h"

enum { kPage = 4096 };

static struct shmid_ds status_of(int id) {
  struct shmid_ds status;
  MUST(shmctl(id, IPC_STAT, &status));
  return status;
}

static void* attach(int id, const void* where, int flags) { return MUST(shmat(id, where, flags)); }

int main(void) {
  const int first = MUST(shmget(0x1234, 5 * kPage + 10, IPC_CREAT | IPC_EXCL | 0640));
  // So that the next ids are not those of a fresh namespace.
  const int passing = MUST(shmget(IPC_PRIVATE, kPage, IPC_CREAT | 0600));
  MUST(shmctl(passing, IPC_RMID, NULL));
  const int idle = MUST(shmget((key_t)0x87654321, 3 * kPage, IPC_CREAT | IPC_EXCL | 0606));
  const int removed = MUST(shmget(IPC_PRIVATE, 2 * kPage, IPC_CREAT | 0600));
  const int sparse = MUST(shmget(0x77, (size_t)64 << 20, IPC_CREAT | 0600));

  char* memory = attach(first, NULL, 0);
  strcpy(memory, "start");
  strcpy(memory + 5 * kPage, "the end");
  char* again = attach(first, NULL, SHM_RDONLY);
  char* content = attach(idle, NULL, 0);
  strcpy(content + kPage, "nobody has it");
  MUST(shmdt(content));
  char* of_removed = attach(removed, NULL, 0);
  strcpy(of_removed, "removed");
  MUST(shmctl(removed, IPC_RMID, NULL));
  char* of_sparse = attach(sparse, NULL, 0);
  of_sparse[40 << 20] = 7;

  const pid_t child = MUST(fork());
  if (child == 0) {
    // Only the middle of it, elsewhere; of the other only what is inherited.
    MUST(shmdt(again));
    char* moved = attach(first, (void*)0x500000000000, 0);
    MUST(munmap(moved, kPage));
    MUST(munmap(moved + 4 * kPage, 2 * kPage));
    while (access("/check", F_OK) != 0) pause_ms(5);
    while (strcmp(moved + 2 * kPage, "from the parent") != 0) pause_ms(1);
    strcpy(moved + 3 * kPage, "from the child");
    CHECK(strcmp(memory, "start") == 0, "the child finds \"%s\"", memory);
    CHECK(strcmp(of_removed, "removed") == 0, "the removed segment in the child");
    _exit(0);
  }
  const struct shmid_ds before = status_of(first);

  wait_for_check();
  CHECK(MUST(shmget(0x1234, 0, 0)) == first, "the first segment has another id");
  CHECK(MUST(shmget((key_t)0x87654321, 0, 0)) == idle, "the idle segment has another id");
  const struct shmid_ds now = status_of(first);
  CHECK(now.shm_segsz == before.shm_segsz && now.shm_perm.mode == before.shm_perm.mode &&
            now.shm_perm.uid == before.shm_perm.uid && now.shm_perm.gid == before.shm_perm.gid,
        "%zu bytes, mode %o, owner %d", now.shm_segsz, now.shm_perm.mode, now.shm_perm.uid);
  // Two here, and of the child what is inherited and the middle.
  CHECK(now.shm_nattch == before.shm_nattch && now.shm_nattch == 4, "%lu attached, %lu before",
        (unsigned long)now.shm_nattch, (unsigned long)before.shm_nattch);
  CHECK(status_of(removed).shm_perm.mode & SHM_DEST, "the removed segment is back");
  CHECK(strcmp(of_removed, "removed") == 0, "the removed segment holds \"%s\"", of_removed);
  CHECK(strcmp(memory, "start") == 0 && strcmp(memory + 5 * kPage, "the end") == 0, "the content");
  CHECK(mprotect(again, kPage, PROT_READ | PROT_WRITE) == -1 && errno == EACCES,
        "attached read-only, and can be written");
  CHECK(of_sparse[40 << 20] == 7 && of_sparse[20 << 20] == 0, "the sparse segment");
  CHECK(status_of(idle).shm_nattch == 0, "somebody has attached the idle segment");
  content = attach(idle, NULL, 0);
  CHECK(strcmp(content + kPage, "nobody has it") == 0, "the idle segment holds \"%s\"", content + kPage);

  strcpy(memory + 2 * kPage, "from the parent");
  int status = 0;
  MUST(waitpid(child, &status, 0));
  CHECK(status == 0, "the child ended with status %x", status);
  CHECK(strcmp(again + 3 * kPage, "from the child") == 0, "what the child wrote is \"%s\"", again + 3 * kPage);
  // Detached by the last: gone.
  MUST(shmdt(of_removed));
  struct shmid_ds gone;
  CHECK(shmctl(removed, IPC_STAT, &gone) == -1 && errno == EINVAL, "the removed segment is still there");
  MUST(shmdt(memory));
  MUST(shmdt(again));
  CHECK(status_of(first).shm_nattch == 0, "%lu are still attached", (unsigned long)status_of(first).shm_nattch);
  return ok();
}
