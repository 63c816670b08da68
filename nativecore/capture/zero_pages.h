// Pages that hold nothing but zeroes, on their way into a page file: an absent
// page of anonymous memory reads as zeroes anyway.
#pragma once

#include <cstdint>
#include <vector>

#include "capture/page_files.h"

namespace stasis {

bool is_zero_page(const unsigned char* page);

// From how many pages of zeroes in a row on they are left out. Each gap costs an
// entry of the page map and a call at restore, so their number is bounded: a gap
// per 16 KiB at most, and where there is more memory some 64 Ki of them.
uint64_t shortest_gap_pages(uint64_t total_pages);

// Takes the stretches of zeroes out of a piece. `bytes` is its content, and
// afterwards what is left of it, in `buffer` if anything was left out; `written`
// are the addresses of that. Gives its length.
uint64_t leave_out_zeroes(const PagePiece& piece, const std::vector<PageRun>& backed, uint64_t shortest_gap,
                          const unsigned char*& bytes, unsigned char* buffer, std::vector<PageRun>& written);

// Joined to the last one if it follows.
void append_run(std::vector<PageRun>& runs, const PageRun& run);

}  // namespace stasis
