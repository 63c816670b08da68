#include "capture/page_files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "base/fault_point.h"
#include "base/native_error.h"
#include "base/parallel.h"
#include "base/sys.h"
#include "capture/left_out_pages.h"
#include "capture/parent_pages.h"
#include "capture/zero_pages.h"

namespace stasis {
namespace {

constexpr size_t kMaximalWindows = 512;  // of IOV_MAX, 1024
constexpr uint64_t kParallelBytes = 8 << 20;

// Where a piece goes is known once all pieces before it have been looked at:
// pieces of a file are taken in order, so whoever is waited for is at work.
class FileOrder {
 public:
  // For the piece that would lie at `from` if nothing was left out: waits for its
  // turn, and gives the place of its `written_bytes`. Nothing: somebody has given up.
  std::optional<uint64_t> take(uint64_t from, uint64_t length_bytes, uint64_t written_bytes) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return given_up_ || next_ == from; });
    if (given_up_) return std::nullopt;
    next_ += length_bytes;
    changed_.notify_all();
    return std::exchange(end_, end_ + written_bytes);
  }
  uint64_t end() const { return end_; }
  void give_up() {
    const std::lock_guard lock(mutex_);
    given_up_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t next_ = 0;
  uint64_t end_ = 0;  // of the file
  bool given_up_ = false;
};

// A run of the core knows one codec and one level.
FrameCompressor& compressor_of_thread(PageCodec codec, int level) {
  static thread_local FrameCompressor compressor(codec, level);
  return compressor;
}

}  // namespace

std::vector<PagePiece> cut_into_pieces(const std::vector<PageRun>& runs, uint64_t piece_bytes) {
  std::vector<PagePiece> pieces;
  for (const PageRun& run : runs) {
    uint64_t address = run.address;
    uint64_t left = run.page_count * kPageBytes;
    while (left) {
      if (pieces.empty()) pieces.emplace_back();
      if (pieces.back().length_bytes == piece_bytes || pieces.back().windows.size() == kMaximalWindows) {
        pieces.push_back({pieces.back().file_offset + pieces.back().length_bytes, 0, {}});
      }
      PagePiece& piece = pieces.back();
      const uint64_t length = std::min(left, piece_bytes - piece.length_bytes);
      piece.windows.push_back({reinterpret_cast<void*>(address), length});
      piece.length_bytes += length;
      address += length;
      left -= length;
    }
  }
  return pieces;
}

LiveMemory::LiveMemory(const ProcDir& proc, Pages pages)
    : host_pid_(proc.host_pid()), pages_(pages), memory_(sys::openat(proc.borrow(), "mem", O_RDONLY)) {}

const unsigned char* LiveMemory::read(const PagePiece& piece, unsigned char* buffer) const {
  if (pages_ == Pages::own) {
    const iovec local{buffer, piece.length_bytes};
    const sys::Try<size_t> fast =
        sys::try_process_vm_readv(host_pid_, &local, 1, piece.windows.data(), piece.windows.size());
    if (fast.ok() && fast.value == piece.length_bytes) return buffer;
    if (!fast.ok() && fast.error == ESRCH) throw NativeError("task_gone", "reading memory").with_pid(host_pid_);
  }
  // Also where that stopped, at a mapping without read permission: /proc/PID/mem reads it with force.
  unsigned char* to = buffer;
  for (const iovec& window : piece.windows) {
    const uint64_t address = reinterpret_cast<uint64_t>(window.iov_base);
    for (uint64_t done = 0; done < window.iov_len;) {
      const sys::Try<size_t> count = sys::try_pread(memory_.borrow(), to + done, window.iov_len - done, address + done);
      if (!count.ok() || count.value == 0) {
        throw NativeError::from_errno("pread", count.ok() ? ESRCH : count.error)
            .with_path("/proc/PID/mem")
            .with_pid(host_pid_)
            .with_address(address + done);
      }
      done += count.value;
    }
    to += window.iov_len;
  }
  return buffer;
}

CopiedMemory::CopiedMemory(const PageSource& source, const std::vector<PageRun>& runs, CopySpace* space) : runs_(runs) {
  const uint64_t length = run_pages(runs) * kPageBytes;
  if (length == 0) return;
  if (space) bytes_ = space->take(length);
  if (!bytes_) {
    own_ = sys::mmap(0, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE);
    bytes_ = own_.data();
  }
  for (const PagePiece& piece : cut_into_pieces(runs)) {
    unsigned char* const place = bytes_ + piece.file_offset;
    const unsigned char* const bytes = source.read(piece, place);
    if (bytes != place) std::memcpy(place, bytes, piece.length_bytes);
  }
}

// The runs are those that were copied, so pieces lie here as they will in the file.
const unsigned char* CopiedMemory::read(const PagePiece& piece, unsigned char*) const {
  return bytes_ + piece.file_offset;
}

const unsigned char* CopiedMemory::find(uint64_t address, uint64_t length_bytes) const {
  uint64_t offset = 0;
  for (const PageRun& run : runs_) {
    const uint64_t run_bytes = run.page_count * kPageBytes;
    if (address >= run.address && address + length_bytes <= run.address + run_bytes)
      return bytes_ + offset + (address - run.address);
    offset += run_bytes;
  }
  return nullptr;
}

const unsigned char* TwinMemory::read(const PagePiece& piece, unsigned char* buffer) const {
  if (!not_forked_) return twin_.read(piece, buffer);
  unsigned char* to = buffer;
  for (const iovec& window : piece.windows) {
    if (const unsigned char* bytes = not_forked_->find(reinterpret_cast<uint64_t>(window.iov_base), window.iov_len)) {
      std::memcpy(to, bytes, window.iov_len);
    } else {
      twin_.read({0, window.iov_len, {window}}, to);
    }
    to += window.iov_len;
  }
  return buffer;
}

PageFiles::~PageFiles() {
  for (const std::string& name : names_) ::unlinkat(images_directory_, name.c_str(), 0);
}

uint64_t PageFiles::write(std::vector<Content>& contents, Hurry hurry, const std::function<void()>& check_abort) {
  fault_point("write_pages");
  const PageCodec codec = hurry == Hurry::no ? codec_ : PageCodec::none;
  const PageWriting writing = hurry == Hurry::no ? writing_ : PageWriting::cached;
  struct Job {
    size_t content;
    PagePiece piece;
    std::vector<PageRun> written, equal;
    uint64_t compared_pages = 0;
    FrameSize frame;
  };
  struct File {
    File(int directory, const char* name, PageWriting how) : output(directory, name, how) {}
    PageFile output;
    FileOrder order;
    std::vector<FrameSize> frames;
  };
  std::vector<std::unique_ptr<File>> files;
  std::vector<Job> jobs;
  uint64_t total_bytes = 0;
  for (size_t i = 0; i < contents.size(); ++i) {
    const Content& content = contents[i];
    STASIS_CONTEXT("creating a page file", content.host_pid);
    char name[48];
    std::snprintf(name, sizeof name, "pages-%u.img%s", content.pages_id, suffix_of(codec));
    files.push_back(std::make_unique<File>(images_directory_, name, writing));
    names_.emplace_back(name);
    const uint64_t piece_bytes = codec == PageCodec::none ? kPieceBytes : kFrameBytes;
    for (PagePiece& piece : cut_into_pieces(content.runs, piece_bytes))
      jobs.push_back({i, std::move(piece), {}, {}, 0, {}});
    total_bytes += run_pages(content.runs) * kPageBytes;
  }
  progress_.expect(total_bytes);
  const uint64_t shortest_gap = shortest_gap_pages(total_bytes / kPageBytes);
  // Pieces are taken in order by all workers, whosever they are: a hundred small tasks are as much work as a large one.
  const unsigned workers = total_bytes < kParallelBytes ? 1 : kMaximalWorkers;
  parallel_for(jobs.size(), workers, [&](size_t index, bool in_caller) {
    static thread_local sys::Mapping buffer;
    if (!buffer.valid()) buffer = sys::mmap(0, kPieceBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    Job& job = jobs[index];
    const Content& content = contents[job.content];
    File& file = *files[job.content];
    STASIS_CONTEXT("writing pages", content.host_pid);
    try {
      if (in_caller) {
        check_abort();
        progress_.tell();
      }
      const unsigned char* bytes = content.source->read(job.piece, buffer.data());
      PagePiece changed;
      if (content.parent && hurry == Hurry::no) {
        std::vector<PageRun> kept;
        changed.length_bytes = leave_out_equal(job.piece, *content.parent, shortest_gap, bytes, buffer.data(), kept,
                                               job.equal, job.compared_pages);
        for (const PageRun& run : kept)
          changed.windows.push_back({reinterpret_cast<void*>(run.address), run.page_count * kPageBytes});
      }
      uint64_t length = leave_out_zeroes(job.compared_pages > 0 ? changed : job.piece, content.backed, shortest_gap,
                                         bytes, buffer.data(), job.written);
      if (codec != PageCodec::none && length > 0) {
        const std::string_view frame = compressor_of_thread(codec, level_).compress(bytes, length);
        job.frame = {static_cast<uint32_t>(frame.size()), static_cast<uint32_t>(length)};
        bytes = reinterpret_cast<const unsigned char*>(frame.data());
        length = frame.size();
      }
      const std::optional<uint64_t> offset = file.order.take(job.piece.file_offset, job.piece.length_bytes, length);
      if (offset) file.output.write(*offset, bytes, length, content.host_pid);
      progress_.add(job.piece.length_bytes);
    } catch (...) {
      // The others may wait for this piece, and all of them for none that is never taken up.
      for (const auto& each : files) each->order.give_up();
      throw;
    }
  });
  uint64_t left_out = 0;
  for (Content& content : contents) {
    left_out += run_pages(content.runs);
    content.runs.clear();
  }
  for (const Job& job : jobs) {
    Content& content = contents[job.content];
    left_out -= run_pages(job.written) + run_pages(job.equal);
    for (const PageRun& run : job.written) append_run(content.runs, run);
    for (const PageRun& run : job.equal) append_run(content.equal, run);
    content.compared_pages += job.compared_pages;
    if (job.frame.content_bytes > 0) files[job.content]->frames.push_back(job.frame);
  }
  for (size_t i = 0; i < contents.size(); ++i) {
    File& file = *files[i];
    uint64_t size_bytes = file.order.end();
    if (codec != PageCodec::none) {
      const std::string index = encode_frame_index(file.frames);
      file.output.write(size_bytes, reinterpret_cast<const unsigned char*>(index.data()), index.size(),
                        contents[i].host_pid);
      size_bytes += index.size();
    }
    // Reads the blocks in which frames meet; pages fill theirs.
    written_.push_back(file.output.finish(size_bytes, workers, check_abort));
  }
  fault_point("pages_file_written");
  return left_out;
}

}  // namespace stasis
