#include "executor/page_process.h"

#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <memory>
#include <vector>

#include "base/native_error.h"
#include "base/page.h"
#include "base/page_digest.h"
#include "base/sha256.h"
#include "base/sys.h"

namespace stasis {
namespace {

// Of the background: so short that a fault waits for 0.2 ms at most.
constexpr uint64_t kChunkBytes = 512 * 1024;
// Around a fault: programs go on where they are, and 16 pages cost little more than one.
constexpr uint64_t kFaultBytes = 16 * kPageBytes;
constexpr size_t kMessages = 32;

class GivenUp {};

// One thread does everything, in this order: what the kernel says, then the
// background. A message changes what is pending before anything else is copied,
// and while there is a message that we have not read the kernel refuses to copy
// (EAGAIN): so no copy goes by a picture of the memory that is no longer true.
class PageProcess {
 public:
  PageProcess(LazyMemory& memory, UniqueFd socket)
      : spaces_(memory.spaces), files_(memory.files), socket_(std::move(socket)), buffer_(kChunkBytes) {}

  void run() {
    for (;;) {
      await_news();
      hear_coordinator();
      for (size_t index = 0; index < spaces_.size(); ++index) hear_kernel(index);
      answer_waiting_faults();
      if (!committed_) continue;
      drop_finished();
      if (spaces_.empty()) break;
      fill_a_chunk(spaces_.front());
    }
    for (size_t file = 0; file < files_.size(); ++file) compare_digest(files_[file]);
  }

 private:
  struct Space : LazySpace {
    explicit Space(LazySpace&& from) : LazySpace(std::move(from)) {}
    std::vector<uint64_t> waiting;  // faults that could not be answered before a message had been read
    bool gone = false;
  };
  enum class Outcome { done, again, gone };

  static std::vector<std::unique_ptr<Space>> own(std::vector<LazySpace>& spaces) {
    std::vector<std::unique_ptr<Space>> owned;
    for (LazySpace& space : spaces) owned.push_back(std::make_unique<Space>(std::move(space)));
    return owned;
  }

  struct Spaces : std::vector<std::unique_ptr<Space>> {
    explicit Spaces(std::vector<LazySpace>& from) : std::vector<std::unique_ptr<Space>>(own(from)) {}
  };

  void await_news() {
    std::vector<pollfd> awaited;
    bool waiting = false;
    if (!committed_) awaited.push_back({socket_.borrow(), POLLIN, 0});
    for (const auto& space : spaces_) {
      awaited.push_back({space->uffd.borrow(), POLLIN, 0});
      waiting = waiting || !space->waiting.empty();
    }
    if (::poll(awaited.data(), awaited.size(), committed_ || waiting ? 0 : -1) < 0 && errno != EINTR)
      throw NativeError::from_errno("poll", errno);
  }

  void hear_coordinator() {
    if (committed_) return;
    char word = 0;
    const ssize_t length = ::recv(socket_.borrow(), &word, 1, MSG_DONTWAIT);
    if (length < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (length != 1 || word != kCommitted) throw GivenUp();
    committed_ = true;
    socket_.reset();
  }

  void hear_kernel(size_t index) {
    uffd_msg messages[kMessages];
    Space& space = *spaces_[index];
    const ssize_t length = ::read(space.uffd.borrow(), messages, sizeof messages);
    if (length < 0 && errno == EAGAIN) return;
    if (length < 0 && errno != EINTR) throw NativeError::from_errno("read", errno).with_what("reading a userfaultfd");
    for (ssize_t at = 0; at + static_cast<ssize_t>(sizeof(uffd_msg)) <= length; at += sizeof(uffd_msg))
      follow(space, messages[static_cast<size_t>(at) / sizeof(uffd_msg)]);
  }

  void follow(Space& space, const uffd_msg& message) {
    switch (message.event) {
      case UFFD_EVENT_PAGEFAULT:
        space.waiting.push_back(message.arg.pagefault.address / kPageBytes * kPageBytes);
        return;
      case UFFD_EVENT_FORK: {
        // What the parent misses the child misses; what it has it has given to the child.
        LazySpace child;
        child.uffd = UniqueFd(static_cast<int>(message.arg.fork.ufd));
        child.pending = space.pending;
        spaces_.push_back(std::make_unique<Space>(std::move(child)));
        return;
      }
      case UFFD_EVENT_REMAP:
        space.pending.move(message.arg.remap.from, message.arg.remap.to, message.arg.remap.len);
        return;
      case UFFD_EVENT_REMOVE:
      case UFFD_EVENT_UNMAP:
        space.pending.erase(message.arg.remove.start, message.arg.remove.end - message.arg.remove.start);
        return;
      default: throw NativeError("conflict", "a message of a userfaultfd that we do not know");
    }
  }

  void answer_waiting_faults() {
    for (size_t index = 0; index < spaces_.size(); ++index) {
      Space& space = *spaces_[index];
      std::vector<uint64_t> faults;
      faults.swap(space.waiting);
      for (const uint64_t address : faults) {
        if (space.gone) break;
        const PendingPages::Piece piece = space.pending.at(address, kFaultBytes);
        const Outcome outcome = piece.length_bytes > 0 ? copy(space, piece) : copy_zero_page(space, address);
        if (outcome == Outcome::again) space.waiting.push_back(address);
        if (outcome == Outcome::gone) space.gone = true;
      }
    }
  }

  void drop_finished() {
    std::erase_if(spaces_, [](const std::unique_ptr<Space>& space) {
      return space->gone || (space->pending.empty() && space->waiting.empty());
    });
  }

  void fill_a_chunk(const std::unique_ptr<Space>& space) {
    const PendingPages::Piece piece = space->pending.first(kChunkBytes);
    if (piece.length_bytes > 0 && copy(*space, piece) == Outcome::gone) space->gone = true;
  }

  Outcome copy(Space& space, const PendingPages::Piece& piece) {
    read_file(files_[piece.page_file], piece.file_offset_bytes, piece.length_bytes);
    uint64_t done = 0;
    const Outcome outcome = copy_buffer(space, piece.address, piece.length_bytes, done);
    space.pending.erase(piece.address, done);
    return outcome;
  }

  // `done`: bytes that are there now, or that have no place to be.
  Outcome copy_buffer(Space& space, uint64_t address, uint64_t length_bytes, uint64_t& done) {
    uint64_t part_bytes = length_bytes;
    while (done < length_bytes) {
      part_bytes = std::min(part_bytes, length_bytes - done);
      uffdio_copy request{};
      request.dst = address + done;
      request.src = reinterpret_cast<uint64_t>(buffer_.data()) + done;
      request.len = part_bytes;
      if (::ioctl(space.uffd.borrow(), UFFDIO_COPY, &request) == 0) {
        done += part_bytes;
        part_bytes = length_bytes;
        continue;
      }
      if (request.copy > 0) {
        done += static_cast<uint64_t>(request.copy);
        continue;
      }
      switch (errno) {
        case EAGAIN: return Outcome::again;
        case EINTR: continue;
        case ESRCH: return Outcome::gone;
        case EEXIST:
          wake(space, address + done);
          done += kPageBytes;
          continue;
        case ENOENT:  // across a border of mappings, or not in one that is registered any more
          if (part_bytes > kPageBytes) {
            part_bytes = std::max(part_bytes / 2 / kPageBytes, uint64_t{1}) * kPageBytes;
          } else {
            wake(space, address + done);
            done += kPageBytes;
          }
          continue;
        default: throw NativeError::from_errno("ioctl UFFDIO_COPY", errno).with_address(address + done);
      }
    }
    return Outcome::done;
  }

  Outcome copy_zero_page(Space& space, uint64_t address) {
    uffdio_zeropage request{};
    request.range = {address, kPageBytes};
    if (::ioctl(space.uffd.borrow(), UFFDIO_ZEROPAGE, &request) == 0) return Outcome::done;
    switch (errno) {
      case EAGAIN:
      case EINTR: return Outcome::again;
      case ESRCH: return Outcome::gone;
      case EEXIST:
      case ENOENT: wake(space, address); return Outcome::done;
      default: throw NativeError::from_errno("ioctl UFFDIO_ZEROPAGE", errno).with_address(address);
    }
  }

  // Whoever waits there looks again.
  static void wake(const Space& space, uint64_t address) {
    uffdio_range range{address, kPageBytes};
    ::ioctl(space.uffd.borrow(), UFFDIO_WAKE, &range);
  }

  // By read(2), not by a mapping: a file that is cut short is an answer then, and no SIGBUS.
  void read_file(const LazyFile& file, uint64_t offset_bytes, uint64_t length_bytes) {
    if (file.framed) return file.framed->read(offset_bytes, buffer_.data(), length_bytes);
    const auto got = sys::try_pread_all(file.file.borrow(), buffer_.data(), length_bytes, offset_bytes);
    if (!got.ok()) throw NativeError::from_errno("pread", got.error).with_path(file.name);
    if (got.value < length_bytes)
      throw NativeError("truncated", "page file \"" + file.name + "\" has become shorter than the restore needs");
  }

  void compare_digest(const LazyFile& file) {
    if (!file.file.valid() || file.digest.empty()) return;
    if (found_digest(file) != file.digest) throw NativeError("mismatch", "page file " + not_as_written(file.name));
  }

  std::string found_digest(const LazyFile& file) {
    if (is_page_digest(file.digest)) {
      struct stat status;
      if (::fstat(file.file.borrow(), &status) < 0) throw NativeError::from_errno("fstat", errno).with_path(file.name);
      // One thread: this process is not one that may start others.
      return PageDigest().finish(file.file.borrow(), static_cast<uint64_t>(status.st_size), 1);
    }
    Sha256 digest;
    for (uint64_t offset = 0;;) {
      const auto got = sys::try_pread(file.file.borrow(), buffer_.data(), buffer_.size(), offset);
      if (!got.ok()) throw NativeError::from_errno("pread", got.error).with_path(file.name);
      if (got.value == 0) break;
      digest.update(buffer_.data(), got.value);
      offset += got.value;
    }
    return digest.finish();
  }

  Spaces spaces_;
  const std::vector<LazyFile>& files_;
  UniqueFd socket_;
  std::vector<unsigned char> buffer_;
  bool committed_ = false;
};

}  // namespace

int run_page_process(LazyMemory& memory, UniqueFd socket) {
  // Not destroyed: the descriptors are the guardian's as well.
  auto* const process = new PageProcess(memory, std::move(socket));
  try {
    process->run();
    return kAllPagesAreIn;
  } catch (const GivenUp&) {
    return kRestoreWasGivenUp;
  } catch (const std::exception& error) {
    ::dprintf(2, "lazy pages: cannot fill the memory of the container: %s\n", error.what());
    return kPagesFailed;
  }
}

}  // namespace stasis
