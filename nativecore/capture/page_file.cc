#include "capture/page_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/native_error.h"

namespace stasis {
namespace {

constexpr uint64_t kWindowBytes = 1 << 20;
// Of direct writing; as large as the blocks of any disk that a page fits into.
constexpr uint64_t kAlignment = 4096;
// What is handed to the disk at a time.
constexpr uint64_t kWriteBackBytes = 8 << 20;

constexpr int kFlags = O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW;

// A file system that is memory takes O_DIRECT, and has nothing to write to.
bool is_memory(int file) {
  struct statfs status;
  return ::fstatfs(file, &status) == 0 && (status.f_type == TMPFS_MAGIC || status.f_type == RAMFS_MAGIC);
}

}  // namespace

PageFile::PageFile(int directory, std::string name, PageWriting how)
    : name_(std::move(name)), early_(how != PageWriting::cached) {
  descriptor_ = sys::openat(directory, name_.c_str(), kFlags, 0600);
  if (how != PageWriting::direct || is_memory(descriptor_.borrow())) return;
  const sys::Try<int64_t> flags = sys::try_fcntl(descriptor_.borrow(), F_GETFL, 0);
  // Refused by file systems that cannot (EINVAL); others say so at the first write.
  direct_ =
      flags.ok() && sys::try_fcntl(descriptor_.borrow(), F_SETFL, static_cast<uint64_t>(flags.value) | O_DIRECT).ok();
  windows_ = direct_;
}

void PageFile::write(uint64_t offset, const unsigned char* bytes, uint64_t length_bytes, pid_t host_pid) {
  if (windows_) return write_windows(offset, bytes, length_bytes, host_pid);
  digest_.add(offset, bytes, length_bytes);
  write_all(offset, bytes, length_bytes, host_pid);
  if (early_) begin_write_back(offset, length_bytes);
}

void PageFile::write_windows(uint64_t offset, const unsigned char* bytes, uint64_t length_bytes, pid_t host_pid) {
  while (length_bytes > 0) {
    const uint64_t number = offset / kWindowBytes;
    const uint64_t from = offset % kWindowBytes;
    const uint64_t count = std::min(length_bytes, kWindowBytes - from);
    if (count == kWindowBytes && reinterpret_cast<uintptr_t>(bytes) % kAlignment == 0) {
      digest_.add(offset, bytes, count);
      write_all(offset, bytes, count, host_pid);
    } else {
      std::unique_lock lock(mutex_);
      Window& window = open_windows_[number];
      if (!window.bytes.valid()) window.bytes = take_buffer();
      lock.unlock();
      std::memcpy(window.bytes.data() + from, bytes, count);
      lock.lock();
      window.filled_bytes += count;
      if (window.filled_bytes == kWindowBytes) {
        sys::Mapping full = std::move(window.bytes);
        open_windows_.erase(number);
        lock.unlock();
        digest_.add(number * kWindowBytes, full.data(), kWindowBytes);
        write_all(number * kWindowBytes, full.data(), kWindowBytes, host_pid);
        lock.lock();
        free_buffers_.push_back(std::move(full));
      }
    }
    offset += count;
    bytes += count;
    length_bytes -= count;
  }
}

// With the lock held.
sys::Mapping PageFile::take_buffer() {
  if (free_buffers_.empty()) return sys::mmap(0, kWindowBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  sys::Mapping buffer = std::move(free_buffers_.back());
  free_buffers_.pop_back();
  return buffer;
}

void PageFile::write_all(uint64_t offset, const unsigned char* bytes, uint64_t length_bytes, pid_t host_pid) {
  for (uint64_t done = 0; done < length_bytes;) {
    const sys::Try<size_t> count =
        sys::try_pwrite(descriptor_.borrow(), bytes + done, length_bytes - done, offset + done);
    if (!count.ok() && count.error == EINVAL && direct_) {
      write_through_cache();
      direct_ = false;
      continue;
    }
    if (!count.ok())
      throw NativeError::from_errno("pwrite", count.error).with_what("writing the page file").with_pid(host_pid);
    if (count.value == 0) throw NativeError("no_space", "writing the page file").with_pid(host_pid);
    done += count.value;
  }
}

void PageFile::write_through_cache() const {
  const sys::Try<int64_t> flags = sys::try_fcntl(descriptor_.borrow(), F_GETFL, 0);
  if (!flags.ok()) throw NativeError::from_errno("fcntl", flags.error).with_path(name_);
  const sys::Try<int64_t> set = sys::try_fcntl(descriptor_.borrow(), F_SETFL,
                                               static_cast<uint64_t>(flags.value) & ~static_cast<uint64_t>(O_DIRECT));
  if (!set.ok()) throw NativeError::from_errno("fcntl", set.error).with_path(name_);
}

// The windows behind: pieces come nearly in order, and what another thread has not written yet is left to fsync(2).
// Begun at once, the disk is busy while pages are read: 1 GiB is there after 260 ms, and after 400 to 2400 when fsync
// begins it.
void PageFile::begin_write_back(uint64_t offset, uint64_t length_bytes) const {
  const uint64_t end = (offset + length_bytes) / kWriteBackBytes;
  for (uint64_t number = offset / kWriteBackBytes; number < end; ++number) {
    // It is no more than a wish: whoever waits for the disk calls fsync(2), and gets its errors.
    (void)::sync_file_range(descriptor_.borrow(), static_cast<off64_t>(number * kWriteBackBytes), kWriteBackBytes,
                            SYNC_FILE_RANGE_WRITE);
  }
}

WrittenPageFile PageFile::finish(uint64_t size_bytes, unsigned workers, const std::function<void()>& check) {
  for (auto& [number, window] : open_windows_) {
    // The last one, of which the rest is cut off again.
    const uint64_t start = number * kWindowBytes;
    if (start + window.filled_bytes != size_bytes) throw NativeError("bug", "a page file has a gap").with_path(name_);
    const uint64_t padded = (window.filled_bytes + kAlignment - 1) / kAlignment * kAlignment;
    std::memset(window.bytes.data() + window.filled_bytes, 0, padded - window.filled_bytes);
    digest_.add(start, window.bytes.data(), window.filled_bytes);
    write_all(start, window.bytes.data(), padded, 0);
    if (padded != window.filled_bytes && ::ftruncate(descriptor_.borrow(), static_cast<off_t>(size_bytes)) < 0)
      throw NativeError::from_errno("ftruncate", errno).with_path(name_);
  }
  open_windows_.clear();
  // What is left to hash is a part of a block, which cannot be read directly.
  if (windows_) write_through_cache();
  std::string digest = digest_.finish(descriptor_.borrow(), size_bytes, workers, check);
  return {name_, size_bytes, std::move(digest), direct_};
}

}  // namespace stasis
