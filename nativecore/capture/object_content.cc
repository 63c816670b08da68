#include "capture/object_content.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <utility>

#include "base/native_error.h"
#include "base/parallel.h"

namespace stasis {

std::vector<PageRun> find_data_runs(int file, uint64_t size_bytes) {
  std::vector<PageRun> runs;
  const uint64_t end_of_pages = (size_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  for (uint64_t at = 0; at < size_bytes;) {
    const int64_t data = ::lseek(file, static_cast<off_t>(at), SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;  // nothing but a hole is left
    if (data < 0) throw NativeError::from_errno("lseek", errno);
    const int64_t hole = ::lseek(file, data, SEEK_HOLE);
    if (hole < 0 && errno == ENXIO) break;  // of a tree that runs: it has become shorter
    if (hole < 0) throw NativeError::from_errno("lseek", errno);
    const uint64_t start = static_cast<uint64_t>(data) / kPageBytes * kPageBytes;
    const uint64_t end =
        std::min((static_cast<uint64_t>(hole) + kPageBytes - 1) / kPageBytes * kPageBytes, end_of_pages);
    runs.push_back({start, (end - start) / kPageBytes});
    at = end;
  }
  return runs;
}

const unsigned char* ObjectContent::read(const PagePiece& piece, unsigned char* buffer) const {
  unsigned char* to = buffer;
  for (const iovec& window : piece.windows) {
    const uint64_t offset = reinterpret_cast<uint64_t>(window.iov_base);
    uint64_t done = 0;
    while (done < window.iov_len) {
      const sys::Try<size_t> count = sys::try_pread(file_, to + done, window.iov_len - done, offset + done);
      if (!count.ok()) throw NativeError::from_errno("pread", count.error).with_what("reading a file without a name");
      if (count.value == 0) break;  // a size that is not in whole pages
      done += count.value;
    }
    std::memset(to + done, 0, window.iov_len - done);
    to += window.iov_len;
  }
  return buffer;
}

CopiedObject::CopiedObject(uint64_t length_bytes, unsigned char* prepared) : bytes_(prepared) {
  if (prepared) return;
  own_ = sys::mmap(0, length_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  (void)::madvise(own_.data(), length_bytes, MADV_HUGEPAGE);
  bytes_ = own_.data();
}

void copy_objects(const std::vector<CopyOrder>& orders, const std::function<void()>& check_abort) {
  struct Job {
    const PageSource* from;
    CopiedObject* to;
    PagePiece piece;
  };
  std::deque<ObjectContent> originals;
  std::vector<Job> jobs;
  for (const CopyOrder& order : orders) {
    const ObjectContent& original = originals.emplace_back(order.file);
    for (PagePiece& piece : cut_into_pieces(*order.runs)) jobs.push_back({&original, order.to, std::move(piece)});
  }
  parallel_for(jobs.size(), kMaximalWorkers, [&](size_t number, bool in_caller) {
    if (in_caller) check_abort();
    STASIS_CONTEXT("copying files without a name");
    jobs[number].from->read(jobs[number].piece, jobs[number].to->place_of(jobs[number].piece));
  });
}

}  // namespace stasis
