// Descriptors and paths: advisory locks, claiming a name, opening a path inside a
// foreign root, holes, digests of pages, extended attributes, nodes, window sizes.
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <algorithm>
#include <cstdio>
#include <vector>

#include "base/block_hash.h"
#include "base/unique_fd.h"
#include "binding/module.h"

namespace stasis::binding {

// tryLock(fd) -> boolean. The lock belongs to the open file description and goes with it, however we die.
Napi::Value try_lock(const Napi::CallbackInfo& info) {
  if (::flock(info[0].As<Napi::Number>().Int32Value(), LOCK_EX | LOCK_NB) == 0)
    return Napi::Boolean::New(info.Env(), true);
  if (errno != EWOULDBLOCK) throw_errno(info.Env(), "flock", errno);
  return Napi::Boolean::New(info.Env(), false);
}

// renameWithoutReplacing(oldPath, newPath) -> boolean: a name is claimed by one of several claimants, with all that is
// behind it. File systems without RENAME_NOREPLACE answer EINVAL: there, a directory replaces an empty one.
Napi::Value rename_without_replacing(const Napi::CallbackInfo& info) {
  std::string old_path = info[0].As<Napi::String>();
  std::string new_path = info[1].As<Napi::String>();
  long result = ::syscall(SYS_renameat2, AT_FDCWD, old_path.c_str(), AT_FDCWD, new_path.c_str(), RENAME_NOREPLACE);
  if (result < 0 && errno == EINVAL) result = ::rename(old_path.c_str(), new_path.c_str());
  if (result < 0 && errno != EEXIST && errno != ENOTEMPTY) throw_errno(info.Env(), "renameat2", errno);
  return Napi::Boolean::New(info.Env(), result == 0);
}

// openInRoot(root, path) -> fd. O_PATH; symbolic links and ".." cannot leave the root (Linux 5.6: openat2
// RESOLVE_IN_ROOT).
Napi::Value open_in_root(const Napi::CallbackInfo& info) {
  std::string root = info[0].As<Napi::String>();
  std::string path = info[1].As<Napi::String>();
  UniqueFd directory(::open(root.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (directory.borrow() < 0) throw_errno(info.Env(), "open", errno);
  open_how how{};
  how.flags = O_PATH | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  long fd = ::syscall(SYS_openat2, directory.borrow(), path.c_str(), &how, sizeof how);
  if (fd < 0) throw_errno(info.Env(), "openat2", errno);
  return Napi::Number::New(info.Env(), static_cast<double>(fd));
}

// punchHole(fd, offset, length) -> boolean: gives the disk back what has been read. False: the file system cannot.
Napi::Value punch_hole(const Napi::CallbackInfo& info) {
  int result = ::fallocate(info[0].As<Napi::Number>().Int32Value(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                           info[1].As<Napi::Number>().Int64Value(), info[2].As<Napi::Number>().Int64Value());
  if (result < 0 && errno != EOPNOTSUPP && errno != ENOSYS) throw_errno(info.Env(), "fallocate", errno);
  return Napi::Boolean::New(info.Env(), result == 0);
}

// addBlocks(sum, number, bytes): adds the hashes of the blocks of a page digest, from block `number` on. `sum` is a
// Buffer of two 64-bit numbers, the lower one first.
Napi::Value add_blocks(const Napi::CallbackInfo& info) {
  auto sum_buffer = info[0].As<Napi::Buffer<unsigned char>>();
  auto number = static_cast<uint64_t>(info[1].As<Napi::Number>().Int64Value());
  auto bytes = info[2].As<Napi::Buffer<unsigned char>>();
  BlockSum sum;
  if (sum_buffer.Length() != sizeof sum) throw_errno(info.Env(), "addBlocks", EINVAL);
  std::memcpy(&sum, sum_buffer.Data(), sizeof sum);
  for (uint64_t at = 0; at < bytes.Length(); at += kBlockBytes)
    sum.add(hash_of_block(number++, bytes.Data() + at, std::min<uint64_t>(kBlockBytes, bytes.Length() - at)));
  std::memcpy(sum_buffer.Data(), &sum, sizeof sum);
  return info.Env().Undefined();
}

// getAttribute(path, name) -> Buffer | undefined: an extended attribute of a file, links not followed.
Napi::Value get_attribute(const Napi::CallbackInfo& info) {
  std::string path = info[0].As<Napi::String>();
  std::string name = info[1].As<Napi::String>();
  // XATTR_SIZE_MAX: no value is larger.
  std::vector<char> value(65536);
  ssize_t length = ::lgetxattr(path.c_str(), name.c_str(), value.data(), value.size());
  if (length >= 0) return Napi::Buffer<char>::Copy(info.Env(), value.data(), static_cast<size_t>(length));
  if (errno != ENODATA && errno != EOPNOTSUPP) throw_errno(info.Env(), "lgetxattr", errno);
  return info.Env().Undefined();
}

// listAttributes(path) -> string[]: names of the extended attributes that the caller may see, links not followed.
Napi::Value list_attributes(const Napi::CallbackInfo& info) {
  std::string path = info[0].As<Napi::String>();
  // XATTR_LIST_MAX: no list is longer.
  std::vector<char> names(65536);
  ssize_t length = ::llistxattr(path.c_str(), names.data(), names.size());
  if (length < 0 && errno != EOPNOTSUPP) throw_errno(info.Env(), "llistxattr", errno);
  Napi::Array list = Napi::Array::New(info.Env());
  for (ssize_t at = 0; at < length;) {
    std::string name(names.data() + at);
    list.Set(list.Length(), Napi::String::New(info.Env(), name));
    at += static_cast<ssize_t>(name.size()) + 1;
  }
  return list;
}

// setAttribute(path, name, value) -> boolean, links not followed. False: the file system has none of this kind, or the
// caller may not.
Napi::Value set_attribute(const Napi::CallbackInfo& info) {
  std::string path = info[0].As<Napi::String>();
  std::string name = info[1].As<Napi::String>();
  auto value = info[2].As<Napi::Buffer<char>>();
  int result = ::lsetxattr(path.c_str(), name.c_str(), value.Data(), value.Length(), 0);
  if (result < 0 && errno != EOPNOTSUPP && errno != EPERM) throw_errno(info.Env(), "lsetxattr", errno);
  return Napi::Boolean::New(info.Env(), result == 0);
}

// makeNode(path, kind, major, minor) -> boolean: a named pipe ("p"), a character or a block device ("c", "b"), with
// mode 0600. False: the caller may not, as in a user namespace (mknod(2): EPERM).
Napi::Value make_node(const Napi::CallbackInfo& info) {
  std::string path = info[0].As<Napi::String>();
  std::string kind = info[1].As<Napi::String>();
  mode_t type = kind == "p" ? S_IFIFO : kind == "b" ? S_IFBLK : S_IFCHR;
  dev_t device = ::makedev(info[2].As<Napi::Number>().Uint32Value(), info[3].As<Napi::Number>().Uint32Value());
  int result = ::mknod(path.c_str(), type | 0600, kind == "p" ? 0 : device);
  if (result < 0 && errno != EPERM) throw_errno(info.Env(), "mknod", errno);
  return Napi::Boolean::New(info.Env(), result == 0);
}

// copyWindowSize(from, to): a terminal's window gets the size of another's. The foreground group of `to` hears of it.
Napi::Value copy_window_size(const Napi::CallbackInfo& info) {
  winsize size{};
  if (::ioctl(info[0].As<Napi::Number>().Int32Value(), TIOCGWINSZ, &size) < 0)
    throw_errno(info.Env(), "ioctl(TIOCGWINSZ)", errno);
  if (::ioctl(info[1].As<Napi::Number>().Int32Value(), TIOCSWINSZ, &size) < 0)
    throw_errno(info.Env(), "ioctl(TIOCSWINSZ)", errno);
  return info.Env().Undefined();
}

}  // namespace stasis::binding
