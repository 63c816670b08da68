#include "capture/zero_pages.h"

#include <algorithm>
#include <cstring>

namespace stasis {
namespace {

constexpr uint64_t kShortestGapPages = 4;
constexpr uint64_t kLongestGapPages = 128;  // it has to be found within a piece
constexpr uint64_t kMostGaps = 1 << 16;

uint64_t end_of(const PageRun& run) { return run.address + run.page_count * kPageBytes; }

bool is_backed(const std::vector<PageRun>& backed, uint64_t address) {
  const auto after = std::upper_bound(backed.begin(), backed.end(), address,
                                      [](uint64_t value, const PageRun& run) { return value < run.address; });
  return after != backed.begin() && address < end_of(*std::prev(after));
}

}  // namespace

// Content mostly shows in the first word: the rest is read of zeroes only.
bool is_zero_page(const unsigned char* page) {
  uint64_t first;
  std::memcpy(&first, page, sizeof first);
  return first == 0 && std::memcmp(page, page + sizeof first, kPageBytes - sizeof first) == 0;
}

uint64_t shortest_gap_pages(uint64_t total_pages) {
  return std::clamp(total_pages / kMostGaps, kShortestGapPages, kLongestGapPages);
}

void append_run(std::vector<PageRun>& runs, const PageRun& run) {
  if (!runs.empty() && end_of(runs.back()) == run.address) {
    runs.back().page_count += run.page_count;
  } else {
    runs.push_back(run);
  }
}

uint64_t leave_out_zeroes(const PagePiece& piece, const std::vector<PageRun>& backed, uint64_t shortest_gap,
                          const unsigned char*& bytes, unsigned char* buffer, std::vector<PageRun>& written) {
  const unsigned char* const content = bytes;
  uint64_t length = 0;  // of what is kept
  uint64_t at = 0;      // in the content
  const auto keep = [&](uint64_t address, uint64_t from, uint64_t pages) {
    if (pages == 0) return;
    append_run(written, {address, pages});
    // In place until something has been left out.
    if (length != from) {
      if (content != buffer && bytes != buffer) std::memcpy(buffer, content, length);
      bytes = buffer;
      std::memmove(buffer + length, content + from, pages * kPageBytes);
    }
    length += pages * kPageBytes;
  };
  for (const iovec& window : piece.windows) {
    const uint64_t address = reinterpret_cast<uint64_t>(window.iov_base);
    const uint64_t pages = window.iov_len / kPageBytes;
    uint64_t kept_from = 0;  // page of the window
    for (uint64_t page = 0; page < pages;) {
      uint64_t end = page;
      while (end < pages && is_zero_page(content + at + end * kPageBytes) &&
             !is_backed(backed, address + end * kPageBytes))
        ++end;
      if (end == page) {
        ++page;
        continue;
      }
      if (end - page >= std::min(shortest_gap, pages)) {
        keep(address + kept_from * kPageBytes, at + kept_from * kPageBytes, page - kept_from);
        kept_from = end;
      }
      page = end;
    }
    keep(address + kept_from * kPageBytes, at + kept_from * kPageBytes, pages - kept_from);
    at += window.iov_len;
  }
  return length;
}

}  // namespace stasis
