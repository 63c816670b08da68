#include "capture/left_out_pages.h"

namespace stasis {
namespace {

constexpr uint64_t kShortestGapPages = 4;
constexpr uint64_t kLongestGapPages = 128;  // it has to be found within a piece
constexpr uint64_t kMostGaps = 1 << 18;

}  // namespace

uint64_t shortest_gap_pages(uint64_t total_pages) {
  return std::clamp(total_pages / kMostGaps, kShortestGapPages, kLongestGapPages);
}

void append_run(std::vector<PageRun>& runs, const PageRun& run) {
  if (!runs.empty() && runs.back().address + runs.back().page_count * kPageBytes == run.address) {
    runs.back().page_count += run.page_count;
  } else {
    runs.push_back(run);
  }
}

}  // namespace stasis
