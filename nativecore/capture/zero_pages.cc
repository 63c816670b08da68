#include "capture/zero_pages.h"

#include <algorithm>
#include <cstring>

#include "capture/left_out_pages.h"

namespace stasis {
namespace {

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

uint64_t leave_out_zeroes(const PagePiece& piece, const std::vector<PageRun>& backed, uint64_t shortest_gap,
                          const unsigned char*& bytes, unsigned char* buffer, std::vector<PageRun>& written) {
  const unsigned char* const content = bytes;
  std::vector<PageRun> left_out;
  return leave_out_pages(
      piece, shortest_gap, bytes, buffer,
      [&](uint64_t address, uint64_t at) { return is_zero_page(content + at) && !is_backed(backed, address); }, written,
      left_out);
}

}  // namespace stasis
