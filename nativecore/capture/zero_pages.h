// Pages that hold nothing but zeroes, on their way into a page file: an absent
// page of anonymous memory reads as zeroes anyway.
#pragma once

#include <cstdint>
#include <vector>

#include "capture/page_files.h"

namespace stasis {

bool is_zero_page(const unsigned char* page);

// Takes the stretches of zeroes out of a piece. `bytes` is its content, and
// afterwards what is left of it, in `buffer` if anything was left out; `written`
// are the addresses of that. Gives its length.
uint64_t leave_out_zeroes(const PagePiece& piece, const std::vector<PageRun>& backed, uint64_t shortest_gap,
                          const unsigned char*& bytes, unsigned char* buffer, std::vector<PageRun>& written);

}  // namespace stasis
