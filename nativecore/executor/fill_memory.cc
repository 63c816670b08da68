#include "executor/fill_memory.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <deque>
#include <exception>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/sys.h"
#include "executor/page_store.h"

namespace stasis {
namespace {

// Small enough to be in the processor's cache from the read to the copy, large
// enough to make the cost of the calls vanish.
constexpr uint64_t kPieceBytes = 256u << 10;
// What a thread takes at a time: at least a huge page, because of two threads that
// write to one both clear it. Small enough that they finish together.
constexpr uint64_t kBatchBytes = 2u << 20;
// Starting a thread costs about as much as copying this.
constexpr uint64_t kWorthAThreadBytes = 1u << 20;
constexpr unsigned kFillThreads = 2;

// The chunk's memory is written to; it lies in no userfaultfd range.
constexpr size_t kNoSpace = SIZE_MAX;

struct Chunk {
  size_t space;    // its RegisteredRanges, or kNoSpace
  uint32_t range;  // there
  uint32_t task;
  uint64_t address;
  uint32_t page_file;
  uint64_t offset_bytes;
  uint64_t length_bytes;  // at most a piece
};

// Neighbours in a page file: taken together, because what is done once per batch
// costs as much as the copy of a page.
struct Batch {
  size_t first_chunk;
  size_t chunk_count;
  uint64_t length_bytes;
};

// Registers the ranges, and unregisters each that is filled; leaves the task's own
// descriptor, which a step of the task closes.
class RegisteredRanges {
 public:
  RegisteredRanges(const Hole& hole, uint32_t task, UniqueFd uffd, const std::vector<PlanRange>& ranges,
                   uint64_t features)
      : hole_(hole), task_(task), uffd_(std::move(uffd)), ranges_(ranges), missing_bytes_(ranges.size()) {
    uffdio_api api{};
    api.api = UFFD_API;
    api.features = features;
    if (::ioctl(uffd_.borrow(), UFFDIO_API, &api) < 0) throw NativeError::from_errno("ioctl UFFDIO_API", errno);
    for (const PlanRange& range : ranges_) {
      uffdio_register request{};
      request.range = {range.address, range.length_bytes};
      request.mode = UFFDIO_REGISTER_MODE_MISSING;
      if (::ioctl(uffd_.borrow(), UFFDIO_REGISTER, &request) < 0) {
        throw NativeError::from_errno("ioctl UFFDIO_REGISTER", errno).with_address(range.address);
      }
    }
  }
  RegisteredRanges(const RegisteredRanges&) = delete;

  int borrow() const { return uffd_.borrow(); }
  UniqueFd take() && { return std::move(uffd_); }

  // Before the first is filled. Gives the number of the range that `fill` lies in: the validator has seen that one
  // does.
  uint32_t expect(const PlanFill& fill) {
    const auto holds = [&fill](const PlanRange& range) {
      return range.address <= fill.address && fill.address - range.address < range.length_bytes;
    };
    // Nearly always fills are in the order of ranges.
    if (!holds(ranges_[last_])) {
      const auto found = std::find_if(ranges_.begin(), ranges_.end(), holds);
      STASIS_ASSERT(found != ranges_.end());
      last_ = static_cast<uint32_t>(found - ranges_.begin());
    }
    missing_bytes_[last_] += fill.page_count * kPageBytes;
    return last_;
  }

  // Several threads at once. Unregisters what is complete up to the first range that is not, and tells the task how
  // far that is: it may divide those mappings now. Not in a destructor: if it fails the task would hang at its first
  // missing page. When filling fails the task is killed, so nothing need be unregistered.
  void filled(uint32_t range, uint64_t length_bytes) {
    const std::lock_guard lock(mutex_);
    missing_bytes_[range] -= length_bytes;
    unregister_complete();
  }
  // Ranges that nothing had to be put in, too.
  void finish() {
    const std::lock_guard lock(mutex_);
    unregister_complete();
    STASIS_ASSERT(complete_ == ranges_.size());
  }

 private:
  void unregister_complete() {
    const uint32_t before = complete_;
    for (; complete_ < ranges_.size() && missing_bytes_[complete_] == 0; ++complete_) {
      uffdio_range request{ranges_[complete_].address, ranges_[complete_].length_bytes};
      if (::ioctl(uffd_.borrow(), UFFDIO_UNREGISTER, &request) < 0)
        throw NativeError::from_errno("ioctl UFFDIO_UNREGISTER", errno).with_address(request.start);
    }
    if (complete_ > before) hole_.tell_filled(task_, complete_);
  }

  const Hole& hole_;
  const uint32_t task_;
  UniqueFd uffd_;
  const std::vector<PlanRange>& ranges_;
  uint32_t last_ = 0;
  std::mutex mutex_;
  std::vector<uint64_t> missing_bytes_;  // by number of the range
  uint32_t complete_ = 0;
};

void copy_through_uffd(int uffd, const Chunk& chunk, const unsigned char* source) {
  uint64_t done = 0;
  while (done < chunk.length_bytes) {
    uffdio_copy copy{};
    copy.dst = chunk.address + done;
    copy.src = reinterpret_cast<uint64_t>(source) + done;
    copy.len = chunk.length_bytes - done;
    copy.mode = UFFDIO_COPY_MODE_DONTWAKE;  // everybody waits in the hole
    if (::ioctl(uffd, UFFDIO_COPY, &copy) == 0) return;
    // EAGAIN: interrupted after `copy` bytes (the mappings of the task changed).
    if (errno != EAGAIN && errno != EINTR)
      throw NativeError::from_errno("ioctl UFFDIO_COPY", errno).with_address(copy.dst);
    if (copy.copy > 0) done += static_cast<uint64_t>(copy.copy);
  }
}

// Where the task may write itself process_vm_writev does it, three times as fast; /proc/PID/mem writes with force.
void write_through_mem(const Chunk& chunk, const unsigned char* source, pid_t host_pid) {
  uint64_t done = sys::try_process_vm_write(host_pid, source, chunk.address, chunk.length_bytes).value;
  if (done == chunk.length_bytes) return;
  const UniqueFd memory = sys::openat(AT_FDCWD, ("/proc/" + std::to_string(host_pid) + "/mem").c_str(), O_RDWR);
  while (done < chunk.length_bytes) {
    const auto written =
        sys::try_pwrite(memory.borrow(), source + done, chunk.length_bytes - done, chunk.address + done);
    if (!written.ok())
      throw NativeError::from_errno("pwrite", written.error)
          .with_path("/proc/PID/mem")
          .with_address(chunk.address + done);
    if (written.value == 0)
      throw NativeError("conflict", "writing memory of a task made no progress").with_address(chunk.address + done);
    done += written.value;
  }
}

class ChunkList {
 public:
  void add(const Chunk& chunk) {
    if (batches_.empty() || !continues(chunk) || batches_.back().length_bytes + chunk.length_bytes > kBatchBytes)
      batches_.push_back({chunks_.size(), 0, 0});
    chunks_.push_back(chunk);
    ++batches_.back().chunk_count;
    batches_.back().length_bytes += chunk.length_bytes;
  }
  const std::vector<Batch>& batches() const { return batches_; }
  std::span<const Chunk> chunks_of(const Batch& batch) const {
    return std::span(chunks_).subspan(batch.first_chunk, batch.chunk_count);
  }

 private:
  bool continues(const Chunk& chunk) const {
    const Chunk& last = chunks_.back();
    return last.page_file == chunk.page_file && last.offset_bytes + last.length_bytes == chunk.offset_bytes;
  }

  std::vector<Chunk> chunks_;
  std::vector<Batch> batches_;
};

// The batches, taken by several threads until none is left or one failed.
class Copying {
 public:
  Copying(const ChunkList& chunks, std::deque<RegisteredRanges>& spaces, PageStore& store, const RestoredTree& tree,
          const Deadline& deadline, Progress& progress)
      : chunks_(chunks), spaces_(spaces), store_(store), tree_(tree), deadline_(deadline), progress_(progress) {}

  void run(unsigned threads) {
    std::vector<std::thread> helpers;
    for (unsigned i = 1; i < threads; ++i) helpers.emplace_back([this] { work(false); });
    work(true);
    for (std::thread& helper : helpers) helper.join();
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  void work(bool in_caller) {
    try {
      const sys::Mapping buffer = sys::mmap(0, kPieceBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
      for (;;) {
        const size_t number = next_.fetch_add(1);
        if (number >= chunks_.batches().size() || failed_.load()) return;
        const Batch& batch = chunks_.batches()[number];
        copy(batch, buffer.data());
        progress_.add(batch.length_bytes);
        if (in_caller) progress_.tell();
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
      failed_.store(true);
    }
  }

  void copy(const Batch& batch, unsigned char* buffer) {
    deadline_.check("filling memory");
    for (std::span<const Chunk> left = chunks_.chunks_of(batch); !left.empty();) {
      size_t count = 0;
      uint64_t length_bytes = 0;
      while (count < left.size() && length_bytes + left[count].length_bytes <= kPieceBytes)
        length_bytes += left[count++].length_bytes;
      copy_piece(left.first(count), length_bytes, buffer);
      left = left.subspan(count);
    }
  }

  void copy_piece(std::span<const Chunk> chunks, uint64_t length_bytes, unsigned char* buffer) {
    const Chunk& first = chunks.front();
    store_.read(first.page_file, first.offset_bytes, buffer, length_bytes);
    for (const Chunk& chunk : chunks) {
      STASIS_CONTEXT("filling memory", tree_.host_pid(chunk.task));
      const unsigned char* const source = buffer + (chunk.offset_bytes - first.offset_bytes);
      if (chunk.space != kNoSpace) {
        RegisteredRanges& space = spaces_[chunk.space];
        copy_through_uffd(space.borrow(), chunk, source);
        space.filled(chunk.range, chunk.length_bytes);
      } else {
        write_through_mem(chunk, source, tree_.host_pid(chunk.task));
      }
    }
  }

  const ChunkList& chunks_;
  std::deque<RegisteredRanges>& spaces_;
  PageStore& store_;
  const RestoredTree& tree_;
  const Deadline& deadline_;
  Progress& progress_;
  std::atomic<size_t> next_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::exception_ptr failure_;
};

// What the program does to memory that is not there yet.
constexpr uint64_t kLazyFeatures =
    UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;

void note_lazy_fill(LazyMemory& lazy, const Plan& plan, const PlanFill& fill, int images_directory) {
  const std::string& name = plan.page_files[fill.page_file];
  LazyFile& file = lazy.files[fill.page_file];
  if (!file.file.valid()) {
    file.file = open_page_file(images_directory, name, &file.length_bytes);
    if (codec_of_file(name) != PageCodec::none) {
      file.framed = std::make_unique<FramedFile>(file.file.borrow(), name);
      file.length_bytes = file.framed->length_bytes();
    }
  }
  const uint64_t length = fill.page_count * kPageBytes;
  if (file.length_bytes < length || fill.file_offset_bytes > file.length_bytes - length)
    throw NativeError("truncated", "a page file is shorter than the plan says").with_path(name);
  lazy.spaces.back().pending.add(fill.address, length, fill.page_file, fill.file_offset_bytes);
}

}  // namespace

FillSummary fill_memory(const Plan& plan, const Hole& hole, const RestoredTree& tree, int images_directory,
                        const std::vector<std::string>& digests, const Deadline& deadline, Progress& progress,
                        LazyMemory* lazy) {
  FillSummary summary;
  PageStore store(plan.page_files, images_directory, digests);
  std::deque<RegisteredRanges> spaces;
  ChunkList chunks;

  for (uint32_t index = 0; index < plan.tasks.size(); ++index) {
    const PlanTask& task = plan.tasks[index];
    if (task.fills.empty() && task.uffd_ranges.empty()) continue;
    STASIS_CONTEXT("preparing to fill memory", tree.host_pid(index));
    RegisteredRanges* space = nullptr;
    if (!task.uffd_ranges.empty()) {
      auto fetched = sys::try_pidfd_getfd(tree.pidfd(index), TargetFd(static_cast<int32_t>(hole.slot(task.uffd_slot))));
      if (!fetched.ok()) throw NativeError::from_errno("pidfd_getfd", fetched.error).with_pid(tree.host_pid(index));
      space = &spaces.emplace_back(hole, index, std::move(fetched.value), task.uffd_ranges, lazy ? kLazyFeatures : 0);
      if (lazy) lazy->spaces.push_back({std::move(*space).take(), {}});
    }
    for (const PlanFill& fill : task.fills) {
      const bool through_uffd = fill.method == PlanFill::Method::uffd;
      if (through_uffd && lazy) {
        note_lazy_fill(*lazy, plan, fill, images_directory);
        store.leave_digest(fill.page_file);
        summary.lazy_bytes += fill.page_count * kPageBytes;
        continue;
      }
      const uint64_t length = fill.page_count * kPageBytes;
      store.expect(fill.page_file, fill.file_offset_bytes, length);
      const uint32_t range = through_uffd ? space->expect(fill) : 0;
      for (uint64_t done = 0; done < length; done += kPieceBytes) {
        chunks.add({through_uffd ? spaces.size() - 1 : kNoSpace, range, index, fill.address + done, fill.page_file,
                    fill.file_offset_bytes + done, std::min(kPieceBytes, length - done)});
      }
      (through_uffd ? summary.uffd_bytes : summary.mem_bytes) += length;
    }
  }

  const bool large = summary.uffd_bytes + summary.mem_bytes > kWorthAThreadBytes;
  progress.expect(summary.uffd_bytes + summary.mem_bytes);
  Copying(chunks, spaces, store, tree, deadline, progress).run(large ? kFillThreads : 1);
  if (!lazy) {
    for (RegisteredRanges& space : spaces) space.finish();
  }
  store.compare_digests([&] { deadline.check("comparing the digests of page files"); });
  return summary;
}

}  // namespace stasis
