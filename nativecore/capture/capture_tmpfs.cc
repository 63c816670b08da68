#include "capture/capture_tmpfs.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>

#include "base/native_error.h"
#include "base/sys.h"
#include "capture/path_facts.h"

namespace stasis {
namespace {

class TmpfsReader {
 public:
  TmpfsReader(CapturedTmpfs& tmpfs, uint64_t& left_bytes) : tmpfs_(tmpfs), left_bytes_(left_bytes) {}

  void read_root(int mount) {
    const UniqueFd directory = sys::openat(mount, ".", O_RDONLY | O_DIRECTORY | O_NOATIME);
    const sys::Try<struct statx> stat = sys::try_statx(directory.borrow(), "", AT_EMPTY_PATH);
    if (!stat.ok()) throw NativeError::from_errno("statx", stat.error).with_path(tmpfs_.mount_point);
    CapturedTmpfsEntry root;
    root.path = ".";
    root.stat = to_captured(stat.value);
    root.stat.filesystem_magic = static_cast<uint64_t>(sys::try_fstatfs_type(directory.borrow()).value);
    magic_ = root.stat.filesystem_magic;
    tmpfs_.device = root.stat.device;
    mount_id_ = root.stat.mount_id;
    root.attributes = read_attributes(directory.borrow(), ".");
    tmpfs_.entries.push_back(std::move(root));
    read_directory(directory.borrow(), "");
  }

 private:
  void read_directory(int directory, const std::string& prefix) {
    for (const std::string& name : names_in(directory)) read_entry(directory, name, prefix + name);
  }

  static std::vector<std::string> names_in(int directory) {
    std::vector<std::string> names;
    UniqueFd copy = sys::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_NOATIME);
    // fdopendir takes the descriptor over; closedir closes it.
    const std::unique_ptr<DIR, int (*)(DIR*)> stream(::fdopendir(copy.release()), ::closedir);
    if (!stream) throw NativeError::from_errno("fdopendir", errno);
    while (const dirent* entry = ::readdir(stream.get())) {
      if (std::strcmp(entry->d_name, ".") != 0 && std::strcmp(entry->d_name, "..") != 0)
        names.emplace_back(entry->d_name);
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  void read_entry(int directory, const std::string& name, const std::string& path) {
    const sys::Try<struct statx> stat = sys::try_statx(directory, name.c_str(), AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT);
    if (!stat.ok()) throw NativeError::from_errno("statx", stat.error).with_path(tmpfs_.mount_point + "/" + path);
    CapturedTmpfsEntry entry;
    entry.path = path;
    entry.stat = to_captured(stat.value);
    entry.stat.filesystem_magic = magic_;
    // The root of another mount: only the place of the mount point belongs to this one.
    const bool covered = entry.stat.mount_id != mount_id_;
    if (!covered && entry.stat.link_count > 1 && !S_ISDIR(entry.stat.mode)) {
      const auto [first, is_new] = links_.try_emplace(entry.stat.inode, path);
      if (!is_new) entry.hard_link_to = first->second;
    }
    if (!covered && entry.hard_link_to.empty()) {
      if (S_ISREG(entry.stat.mode)) entry.content = read_content(directory, name, path, entry.stat.size_bytes);
      if (S_ISLNK(entry.stat.mode)) entry.link_target = sys::readlinkat(directory, name.c_str());
      entry.attributes = read_attributes(directory, name);
    }
    const bool descend = !covered && S_ISDIR(entry.stat.mode);
    tmpfs_.entries.push_back(std::move(entry));
    if (descend) {
      const UniqueFd child = sys::openat(directory, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NOATIME);
      read_directory(child.borrow(), path + "/");
    }
  }

  std::string read_content(int directory, const std::string& name, const std::string& path, uint64_t size_bytes) {
    if (size_bytes > left_bytes_) {
      throw NativeError("tmpfs_too_large", "the files need " + std::to_string(size_bytes) +
                                               " bytes more than allowed, " + std::to_string(left_bytes_) +
                                               " were left")
          .with_path(tmpfs_.mount_point + "/" + path);
    }
    left_bytes_ -= size_bytes;
    const UniqueFd file = sys::openat(directory, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NOATIME);
    std::string content(size_bytes, '\0');
    size_t done = 0;
    while (done < content.size()) {
      const sys::Try<size_t> count = sys::try_pread(file.borrow(), content.data() + done, content.size() - done, done);
      if (!count.ok()) throw NativeError::from_errno("pread", count.error).with_path(tmpfs_.mount_point + "/" + path);
      if (count.value == 0) break;
      done += count.value;
    }
    content.resize(done);
    return content;
  }

  // Sockets and devices cannot be opened, and links must not be followed: by
  // name, from their directory, which this thread has for itself.
  static std::vector<CapturedAttribute> read_attributes(int directory, const std::string& name) {
    std::vector<CapturedAttribute> attributes;
    if (::fchdir(directory) < 0) return attributes;
    char names[65536];
    const ssize_t length = ::llistxattr(name.c_str(), names, sizeof names);
    for (ssize_t at = 0; at < length;) {
      const std::string attribute(names + at);
      char value[65536];
      const ssize_t value_length = ::lgetxattr(name.c_str(), attribute.c_str(), value, sizeof value);
      if (value_length >= 0) attributes.push_back({attribute, std::string(value, static_cast<size_t>(value_length))});
      at += static_cast<ssize_t>(attribute.size()) + 1;
    }
    return attributes;
  }

  CapturedTmpfs& tmpfs_;
  uint64_t& left_bytes_;
  uint64_t magic_ = 0;
  int64_t mount_id_ = -1;
  std::map<uint64_t, std::string> links_;  // inode: path of its first name
};

}  // namespace

CapturedTmpfs read_tmpfs(const std::string& mount_point, int mount, uint64_t& left_bytes) {
  STASIS_CONTEXT("reading a tmpfs");
  CapturedTmpfs tmpfs;
  tmpfs.mount_point = mount_point;
  TmpfsReader(tmpfs, left_bytes).read_root(mount);
  return tmpfs;
}

}  // namespace stasis
