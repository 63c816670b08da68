// A tmpfs of the container with files, folders, links, modes, owners, times and a hole; open files on it.
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "target.h"

int main(void) {
  umask(0);
  MUST(mkdir("/scratch/folder", 0751));
  MUST(mkdir("/scratch/folder/deeper", 01777));
  int fd = MUST(open("/scratch/folder/file", O_RDWR | O_CREAT, 0604));
  MUST(fchmod(fd, 04604));
  for (int i = 0; i < 1000; i++) MUST(dprintf(fd, "line %d\n", i));
  MUST(lseek(fd, 100, SEEK_SET));
  MUST(symlink("folder/file", "/scratch/link"));
  MUST(link("/scratch/folder/file", "/scratch/second-name"));
  int sparse = MUST(open("/scratch/sparse", O_RDWR | O_CREAT, 0600));
  MUST(pwrite(sparse, "end", 3, 8 << 20));
  MUST(mkfifo("/scratch/fifo", 0622));
  struct timespec times[2] = {{1000000000, 5}, {1100000000, 7}};
  MUST(utimensat(AT_FDCWD, "/scratch/folder", times, 0));
  MUST(chown("/scratch/sparse", 0, 1000));
  struct statvfs room;
  MUST(statvfs("/scratch", &room));

  wait_for_check();

  struct stat facts;
  MUST(stat("/scratch/folder", &facts));
  CHECK((facts.st_mode & 07777) == 0751 && facts.st_mtim.tv_sec == 1100000000, "folder: mode %o, time %ld",
        facts.st_mode, facts.st_mtim.tv_sec);
  MUST(stat("/scratch/folder/deeper", &facts));
  CHECK((facts.st_mode & 07777) == 01777, "deeper: mode %o", facts.st_mode);
  MUST(stat("/scratch/folder/file", &facts));
  CHECK((facts.st_mode & 07777) == 04604 && facts.st_nlink == 2, "file: mode %o, %ld links", facts.st_mode,
        (long)facts.st_nlink);
  struct stat open_facts;
  MUST(fstat(fd, &open_facts));
  CHECK(open_facts.st_ino == facts.st_ino, "the open file is not the one in the folder");
  CHECK(lseek(fd, 0, SEEK_CUR) == 100, "the offset is %ld", (long)lseek(fd, 0, SEEK_CUR));
  char* text = read_file("/scratch/second-name");
  CHECK(strlen(text) == 8890 && strstr(text, "line 999\n") != NULL, "file: %zu bytes", strlen(text));
  MUST(lstat("/scratch/link", &facts));
  CHECK(S_ISLNK(facts.st_mode), "the link is none");
  MUST(stat("/scratch/sparse", &facts));
  CHECK(facts.st_size == (8 << 20) + 3 && facts.st_gid == 1000, "sparse: %ld bytes, group %d", (long)facts.st_size,
        facts.st_gid);
  CHECK(facts.st_blocks < 64, "sparse: the hole is filled, %ld blocks", (long)facts.st_blocks);
  MUST(stat("/scratch/fifo", &facts));
  CHECK(S_ISFIFO(facts.st_mode) && (facts.st_mode & 0777) == 0622, "fifo: mode %o", facts.st_mode);
  struct statvfs now;
  MUST(statvfs("/scratch", &now));
  CHECK(now.f_blocks == room.f_blocks && now.f_flag == room.f_flag, "size or flags of the tmpfs changed");
  return ok();
}
