#include "capture/parent_pages.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "base/log_ring.h"
#include "base/native_error.h"
#include "base/page.h"
#include "base/sys.h"
#include "capture/left_out_pages.h"

namespace stasis {
namespace {

uint64_t end_of(const ParentRun& run) { return run.address + run.page_count * kPageBytes; }

// How many bytes could be read.
uint64_t read_bytes(int file, uint64_t offset, void* to, uint64_t length_bytes) {
  const sys::Try<size_t> got = sys::try_pread_all(file, to, length_bytes, offset);
  return got.ok() ? got.value : 0;
}

}  // namespace

ParentPages::ParentPages(int directory, const std::vector<std::string>& files, const std::vector<ParentRun>& runs)
    : runs_(runs) {
  std::map<uint32_t, uint32_t> opened;
  for (ParentRun& run : runs_) {
    const auto [known, is_new] = opened.try_emplace(run.file, static_cast<uint32_t>(files_.size()));
    if (is_new) {
      const std::string& name = files.at(run.file);
      File& file = files_.emplace_back();
      // Not blocked by what is no plain file.
      sys::Try<UniqueFd> descriptor = sys::try_openat(directory, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
      struct stat status {};
      if (descriptor.ok() && ::fstat(descriptor.value.borrow(), &status) == 0 && S_ISREG(status.st_mode)) {
        try {
          if (codec_of_file(name) != PageCodec::none) file.framed.emplace(descriptor.value.borrow(), name);
          file.descriptor = std::move(descriptor.value);
        } catch (const NativeError& error) {
          log_line("%s of the parent is not compared with: %s", name.c_str(), error.what());
        }
      } else {
        log_line("%s of the parent cannot be opened", name.c_str());
      }
    }
    run.file = known->second;
  }
}

uint64_t ParentPages::read(const File& file, uint64_t offset, unsigned char* to, uint64_t length_bytes) {
  if (!file.descriptor.valid()) return 0;
  return file.framed ? file.framed->try_read(offset, to, length_bytes).done_bytes
                     : read_bytes(file.descriptor.borrow(), offset, to, length_bytes);
}

uint64_t ParentPages::find_equal(const PagePiece& piece, const unsigned char* content, std::vector<bool>& equal) const {
  static thread_local sys::Mapping buffer;
  if (!buffer.valid()) buffer = sys::mmap(0, kPieceBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  equal.assign(piece.length_bytes / kPageBytes, false);
  uint64_t compared = 0;
  uint64_t at = 0;  // in the content
  for (const iovec& window : piece.windows) {
    const uint64_t start = reinterpret_cast<uint64_t>(window.iov_base);
    const uint64_t end = start + window.iov_len;
    auto run = std::upper_bound(runs_.begin(), runs_.end(), start,
                                [](uint64_t value, const ParentRun& each) { return value < end_of(each); });
    for (; run != runs_.end() && run->address < end; ++run) {
      const uint64_t from = std::max(start, run->address);
      const uint64_t length = std::min(end, end_of(*run)) - from;
      const uint64_t got = read(files_[run->file], run->offset_bytes + (from - run->address), buffer.data(), length);
      for (uint64_t page = 0; page < got / kPageBytes; ++page) {
        const uint64_t place = at + (from - start) + page * kPageBytes;
        equal[place / kPageBytes] = std::memcmp(content + place, buffer.data() + page * kPageBytes, kPageBytes) == 0;
      }
      compared += length / kPageBytes;
    }
    at += window.iov_len;
  }
  return compared;
}

uint64_t leave_out_equal(const PagePiece& piece, const ParentPages& parent, uint64_t shortest_gap,
                         const unsigned char*& bytes, unsigned char* buffer, std::vector<PageRun>& kept,
                         std::vector<PageRun>& equal, uint64_t& compared) {
  std::vector<bool> is_equal;
  compared = parent.find_equal(piece, bytes, is_equal);
  return leave_out_pages(
      piece, shortest_gap, bytes, buffer, [&](uint64_t, uint64_t at) { return is_equal[at / kPageBytes]; }, kept,
      equal);
}

}  // namespace stasis
