#include "capture/capture_mounts.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/syscall.h>

#include <cerrno>
#include <set>

#include "base/native_error.h"
#include "base/sys.h"
#include "capture/capture_tmpfs.h"
#include "capture/path_facts.h"

namespace stasis {
namespace {

constexpr uint64_t kOpenTreeClone = 1;  // OPEN_TREE_CLONE

// The mount at `path`, without what is mounted below it.
UniqueFd open_mount(const std::string& path) {
  const sys::Try<int64_t> clone =
      sys::try_syscall(SYS_open_tree, static_cast<uint64_t>(AT_FDCWD), reinterpret_cast<uint64_t>(path.c_str()),
                       kOpenTreeClone | O_CLOEXEC);
  if (clone.ok()) return UniqueFd(static_cast<int>(clone.value));
  // A mount that may not be cloned is read as it is seen, with its submounts left out.
  return sys::openat(AT_FDCWD, path.c_str(), O_PATH | O_DIRECTORY);
}

}  // namespace

void capture_mounts(const std::vector<std::pair<const TracedProcess*, uint64_t>>& processes, uint64_t own_inode,
                    const CaptureRequest& request, CaptureData& found) {
  STASIS_CONTEXT("capturing mounts");
  std::set<uint64_t> seen;
  for (const auto& [process, inode] : processes) {
    CapturedMountNamespace mounts;
    mounts.inode = inode;
    if (!seen.insert(mounts.inode).second) continue;
    mounts.host_pid = process->host_pid;
    mounts.mountinfo = process->proc.read("mountinfo");
    found.mount_namespaces.push_back(std::move(mounts));
  }
  if (request.tmpfs_mount_points.empty()) return;

  // The root task's namespace; the root of this thread becomes the namespace's.
  const ProcDir& proc = processes.front().first->proc;
  if (own_inode != found.mount_namespaces.front().inode) {
    const UniqueFd entrance = sys::openat(proc.borrow(), "ns/mnt", O_RDONLY);
    // setns(2) wants a thread that shares its root and directory with nobody.
    if (::unshare(CLONE_FS) < 0) throw NativeError::from_errno("unshare(CLONE_FS)", errno);
    sys::setns(entrance.borrow(), CLONE_NEWNS);
  }
  uint64_t left_bytes = request.tmpfs_limit_bytes;
  for (const std::string& mount_point : request.tmpfs_mount_points) {
    const UniqueFd mount = open_mount(mount_point);
    found.mount_namespaces.front().tmpfs.push_back(read_tmpfs(mount_point, mount.borrow(), left_bytes));
  }
}

}  // namespace stasis
