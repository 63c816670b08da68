// Taking pages out of a piece on its way into a page file: what is left moves together.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "capture/page_files.h"

namespace stasis {

// From how many pages in a row on they are left out. Each gap costs an entry of
// the page map and a call at restore, 10 us in all, where a page costs 1; so their
// number is bounded: a gap per 16 KiB at most, and from 4 GiB on 256 Ki of them.
uint64_t shortest_gap_pages(uint64_t total_pages);

// Joined to the last one if it follows.
void append_run(std::vector<PageRun>& runs, const PageRun& run);

// Takes out the stretches of pages for which is_left_out(address, offset in the
// content) holds. `bytes` is the content of the piece, and afterwards what is
// kept of it, in `buffer` if anything was left out. Gives the length of that.
// Windows that are shorter than a gap are left out whole or not at all.
template <typename IsLeftOut>
uint64_t leave_out_pages(const PagePiece& piece, uint64_t shortest_gap, const unsigned char*& bytes,
                         unsigned char* buffer, IsLeftOut is_left_out, std::vector<PageRun>& kept,
                         std::vector<PageRun>& left_out) {
  const unsigned char* const content = bytes;
  uint64_t length = 0;  // of what is kept
  uint64_t at = 0;      // in the content
  const auto keep = [&](uint64_t address, uint64_t from, uint64_t pages) {
    if (pages == 0) return;
    append_run(kept, {address, pages});
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
      while (end < pages && is_left_out(address + end * kPageBytes, at + end * kPageBytes)) ++end;
      if (end == page) {
        ++page;
        continue;
      }
      if (end - page >= std::min(shortest_gap, pages)) {
        keep(address + kept_from * kPageBytes, at + kept_from * kPageBytes, page - kept_from);
        append_run(left_out, {address + page * kPageBytes, end - page});
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
