#include "capture/path_facts.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>

#include "base/sys.h"

namespace stasis {
namespace {

constexpr unsigned kMinorBits = 20;

}  // namespace

CapturedStatx to_captured(const struct statx& stat) {
  CapturedStatx captured;
  captured.device = static_cast<uint64_t>(stat.stx_dev_major) << kMinorBits | stat.stx_dev_minor;
  captured.inode = stat.stx_ino;
  captured.mode = stat.stx_mode;
  captured.uid = stat.stx_uid;
  captured.gid = stat.stx_gid;
  captured.size_bytes = stat.stx_size;
  captured.rdev = static_cast<uint64_t>(stat.stx_rdev_major) << kMinorBits | stat.stx_rdev_minor;
  captured.link_count = stat.stx_nlink;
  captured.blocks = stat.stx_blocks;
  captured.mount_id = stat.stx_mask & STATX_MNT_ID ? static_cast<int64_t>(stat.stx_mnt_id) : -1;
  captured.mtime_ns = static_cast<uint64_t>(stat.stx_mtime.tv_sec) * 1'000'000'000u + stat.stx_mtime.tv_nsec;
  return captured;
}

CapturedStatx stat_of(int directory, const char* name, bool follow) {
  const int flags = (follow ? 0 : AT_SYMLINK_NOFOLLOW) | (*name == 0 ? AT_EMPTY_PATH : 0);
  const sys::Try<struct statx> stat = sys::try_statx(directory, name, flags);
  return stat.ok() ? to_captured(stat.value) : CapturedStatx{};
}

UniqueFd open_namespace_root(const ProcDir& proc) {
  // The kernel prints paths as seen from the root of the mount namespace, not from that of a task after chroot(2):
  // as many steps up as its root lies deep lead there (our own root, where ".." ends, is in another namespace or
  // above).
  std::string path = "root";
  const auto own_root = proc.try_readlink("root");
  if (own_root.ok() && own_root.value.size() > 1)
    for (const char letter : own_root.value)
      if (letter == '/') path += "/..";
  return std::move(sys::try_openat(proc.borrow(), path.c_str(), O_PATH | O_DIRECTORY).value);
}

PathChecker::PathChecker(const ProcDir& proc, PathMemo& memo, uint64_t mount_namespace)
    : proc_(proc), memo_(memo), root_(open_namespace_root(proc)) {
  if (!root_.valid()) return;
  const sys::Try<struct statx> found = sys::try_statx(root_.borrow(), "", AT_EMPTY_PATH);
  if (!found.ok()) return;
  const CapturedStatx stat = to_captured(found.value);
  root_id_ = std::to_string(mount_namespace) + ' ' + std::to_string(stat.mount_id) + ' ' + std::to_string(stat.device) +
             ' ' + std::to_string(stat.inode) + ' ';
}

bool PathChecker::names(const std::string& link, const CapturedStatx& stat) {
  if (link.empty() || link[0] != '/' || !root_.valid()) return false;
  // A symbolic link that is open itself (O_PATH | O_NOFOLLOW) must not be followed.
  const bool is_link = (stat.mode & S_IFMT) == S_IFLNK;
  const PathMemo::FileId found =
      memo_.get(&PathMemo::resolved, root_id_ + (is_link ? link + '\0' : link), [&] { return resolve(link, is_link); });
  return found.second != 0 && found == std::pair(stat.device, stat.inode);
}

PathMemo::FileId PathChecker::resolve(const std::string& path, bool is_link) const {
  // Symbolic links, absolute ones too, lead where they lead the task.
  const sys::Try<UniqueFd> file =
      sys::try_openat2(root_.borrow(), path.c_str(), O_PATH | (is_link ? O_NOFOLLOW : 0), RESOLVE_IN_ROOT);
  if (!file.ok()) return {};
  const sys::Try<struct statx> found = sys::try_statx(file.value.borrow(), "", AT_EMPTY_PATH);
  if (!found.ok()) return {};
  const CapturedStatx captured = to_captured(found.value);
  return {captured.device, captured.inode};
}

uint64_t PathChecker::magic_of(const char* name, uint64_t device) {
  return memo_.get(&PathMemo::magics, std::to_string(device), [&] {
    const std::string path = "/proc/" + std::to_string(proc_.host_pid()) + "/" + name;
    return static_cast<uint64_t>(sys::try_statfs_type(path.c_str()).value);
  });
}

CapturedPath PathChecker::facts_of_mapped(const Vma& vma) {
  const std::string name = map_files_name(vma.start, vma.end);
  if (root_id_.empty()) return facts_of(name.c_str());
  return memo_.get(&PathMemo::mapped,
                   root_id_ + std::to_string(vma.device) + ' ' + std::to_string(vma.inode) + ' ' + vma.name,
                   [&] { return facts_of(name.c_str()); });
}

CapturedPath PathChecker::facts_of(const char* name) {
  CapturedPath path;
  path.link = proc_.try_readlink(name).value;
  path.stat = stat_of(proc_.borrow(), name);
  path.stat.filesystem_magic = magic_of(name, path.stat.device);
  path.path_matches = names(path.link, path.stat);
  return path;
}

}  // namespace stasis
