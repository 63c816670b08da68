#include "capture/capture_pipes.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>

#include "base/native_error.h"
#include "base/sys.h"

namespace stasis {
namespace {

// A pipe of ours with at least as many slots as theirs: a slot may hold one byte.
std::pair<UniqueFd, UniqueFd> make_pipe(uint32_t capacity_bytes) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0) throw NativeError::from_errno("pipe2", errno);
  std::pair<UniqueFd, UniqueFd> pipe{UniqueFd(ends[0]), UniqueFd(ends[1])};
  const sys::Try<int64_t> resized = sys::try_fcntl(ends[1], F_SETPIPE_SZ, capacity_bytes);
  if (!resized.ok()) throw NativeError::from_errno("fcntl(F_SETPIPE_SZ)", resized.error);
  return pipe;
}

std::string unread_bytes(int own_fd, uint32_t capacity_bytes) {
  int available = 0;
  if (!sys::try_ioctl(own_fd, FIONREAD, &available).ok() || available <= 0) return {};
  const auto [read_end, write_end] = make_pipe(capacity_bytes);
  const ssize_t teed = ::tee(own_fd, write_end.borrow(), static_cast<size_t>(available), SPLICE_F_NONBLOCK);
  if (teed < 0) throw NativeError::from_errno("tee", errno);
  std::string content(static_cast<size_t>(teed), '\0');
  size_t done = 0;
  while (done < content.size()) {
    const ssize_t count = ::read(read_end.borrow(), content.data() + done, content.size() - done);
    if (count <= 0) throw NativeError::from_errno("read", count < 0 ? errno : EIO);
    done += static_cast<size_t>(count);
  }
  if (teed != available) throw NativeError("conflict", "a pipe's content changed while it was read");
  return content;
}

}  // namespace

CapturedPipe capture_pipe(const CapturedOpenFile& file, int own_fd) {
  CapturedPipe pipe;
  pipe.inode = file.path.stat.inode;
  pipe.is_fifo = file.path.stat.filesystem_magic != PIPEFS_MAGIC;
  const sys::Try<int64_t> capacity = sys::try_fcntl(own_fd, F_GETPIPE_SZ, 0);
  if (!capacity.ok()) throw NativeError::from_errno("fcntl(F_GETPIPE_SZ)", capacity.error);
  pipe.capacity_bytes = static_cast<uint32_t>(capacity.value);
  pipe.content = unread_bytes(own_fd, pipe.capacity_bytes);
  return pipe;
}

}  // namespace stasis
