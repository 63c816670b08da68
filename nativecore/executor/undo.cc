#include "executor/undo.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "base/deadline.h"
#include "base/sys.h"

namespace stasis {
namespace {

constexpr uint64_t kCgroupEmptyTimeoutMs = 10'000;  // SIGKILLed tasks leave when the kernel has freed their memory
constexpr int kLongestRereadMs = 16;
constexpr int kMaximalCgroupDepth = 64;

bool is_gone(int error_number) { return error_number == ENOENT || error_number == ENOTDIR; }

void try_remove(int directory, const char* name, int flags, const std::string& path) {
  if (::unlinkat(directory, name, flags) < 0 && !is_gone(errno))
    throw NativeError::from_errno("unlinkat", errno).with_path(path);
}

struct Entry {
  std::string name;
  bool is_directory;
};

// What is in a directory, itself not followed through a symbolic link; nothing if it is not there.
std::vector<Entry> list_directory(int directory) {
  std::vector<Entry> entries;
  const int own = ::fcntl(directory, F_DUPFD_CLOEXEC, 0);
  if (own < 0) throw NativeError::from_errno("fcntl", errno);
  DIR* stream = ::fdopendir(own);  // owns `own` from here on
  if (!stream) {
    const int error_number = errno;
    ::close(own);
    throw NativeError::from_errno("fdopendir", error_number);
  }
  while (const dirent* entry = ::readdir(stream)) {
    const std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    bool is_directory = entry->d_type == DT_DIR;
    if (entry->d_type == DT_UNKNOWN) {
      struct stat status;
      is_directory = ::fstatat(directory, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(status.st_mode);
    }
    entries.push_back({name, is_directory});
  }
  ::closedir(stream);
  return entries;
}

constexpr int kDirectoryFlags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW;

// rmdir answers EBUSY until the last task has gone. Version 2 tells by an event
// on cgroup.events; version 1 has nothing to wait for, so it is read again, at
// growing intervals, until the deadline.
void remove_empty_cgroup(int parent, const char* name, int cgroup, const std::string& path, const Deadline& deadline) {
  const auto events = sys::try_openat(cgroup, "cgroup.events", O_RDONLY);
  int interval_ms = 1;
  for (;;) {
    if (events.ok()) {
      // A read arms the event: what happens after it is seen by poll.
      char text[256];
      (void)!::pread(events.value.borrow(), text, sizeof text, 0);
    }
    if (::unlinkat(parent, name, AT_REMOVEDIR) == 0 || is_gone(errno)) return;
    if (errno != EBUSY || deadline.expired()) throw NativeError::from_errno("rmdir", errno).with_path(path);
    pollfd event{events.ok() ? events.value.borrow() : -1, POLLPRI, 0};
    ::poll(&event, 1, std::min(interval_ms, std::max(1, deadline.remaining_ms())));
    interval_ms = std::min(interval_ms * 2, kLongestRereadMs);
  }
}

void remove_cgroup(int parent, const char* name, const std::string& path, const Deadline& deadline, int depth) {
  if (depth > kMaximalCgroupDepth) throw NativeError("unsupported", "cgroups nested too deeply").with_path(path);
  const auto cgroup = sys::try_openat(parent, name, kDirectoryFlags);
  if (!cgroup.ok()) {
    if (is_gone(cgroup.error)) return;
    throw NativeError::from_errno("openat", cgroup.error).with_path(path);
  }
  struct statfs filesystem;
  if (::fstatfs(cgroup.value.borrow(), &filesystem) < 0)
    throw NativeError::from_errno("fstatfs", errno).with_path(path);
  if (filesystem.f_type != CGROUP_SUPER_MAGIC && filesystem.f_type != CGROUP2_SUPER_MAGIC) {
    throw NativeError("bad_request", "the path is not in a cgroup file system").with_path(path);
  }
  for (const Entry& entry : list_directory(cgroup.value.borrow())) {
    if (entry.is_directory)
      remove_cgroup(cgroup.value.borrow(), entry.name.c_str(), path + "/" + entry.name, deadline, depth + 1);
  }
  remove_empty_cgroup(parent, name, cgroup.value.borrow(), path, deadline);
}

bool is_another(const struct stat& status, uint64_t inode) { return inode != 0 && status.st_ino != inode; }

void remove_directory(const std::string& path, uint64_t inode) {
  struct stat status;
  if (inode != 0 && ::lstat(path.c_str(), &status) == 0 && is_another(status, inode)) return;
  try_remove(AT_FDCWD, path.c_str(), AT_REMOVEDIR, path);
}

// A state directory holds plain files only: a directory in it is not ours and
// makes rmdir fail, which is reported.
void remove_tree(const std::string& path, uint64_t inode) {
  const auto directory = sys::try_openat(AT_FDCWD, path.c_str(), kDirectoryFlags);
  if (!directory.ok()) {
    if (directory.error == ENOENT) return;
    throw NativeError::from_errno("openat", directory.error).with_path(path);
  }
  struct stat status;
  if (::fstat(directory.value.borrow(), &status) < 0) throw NativeError::from_errno("fstat", errno).with_path(path);
  if (is_another(status, inode)) return;
  for (const Entry& entry : list_directory(directory.value.borrow())) {
    if (!entry.is_directory) try_remove(directory.value.borrow(), entry.name.c_str(), 0, path + "/" + entry.name);
  }
  try_remove(AT_FDCWD, path.c_str(), AT_REMOVEDIR, path);
}

void perform(const UndoAction& action) {
  switch (action.kind) {
    case UndoAction::Kind::remove_directory: remove_directory(action.path, action.inode); return;
    case UndoAction::Kind::remove_file: try_remove(AT_FDCWD, action.path.c_str(), 0, action.path); return;
    case UndoAction::Kind::remove_cgroup:
      remove_cgroup(AT_FDCWD, action.path.c_str(), action.path, Deadline::in_ms(kCgroupEmptyTimeoutMs), 0);
      return;
    case UndoAction::Kind::remove_tree: remove_tree(action.path, action.inode); return;
    case UndoAction::Kind::unknown: break;
  }
  throw NativeError("bad_request", "unknown kind of undo action").with_path(action.path);
}

}  // namespace

std::vector<NativeError> perform_undo(const std::vector<UndoAction>& actions) {
  std::vector<NativeError> failures;
  for (const UndoAction& action : actions) {
    STASIS_CONTEXT("undoing");
    try {
      perform(action);
    } catch (NativeError& error) {
      failures.push_back(std::move(error));
    }
  }
  return failures;
}

}  // namespace stasis
