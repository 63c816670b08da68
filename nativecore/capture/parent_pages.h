// What a parent checkpoint holds of an address space, to compare with: where
// nobody has kept note of what changed, pages that read the same are left to it.
//
// Undo: nothing to undo, it only reads.
// If we die here: the target has seen nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/framed_file.h"
#include "base/unique_fd.h"
#include "capture/capture_data.h"
#include "capture/page_files.h"

namespace stasis {

// The page files are somebody's, and may shrink, vanish or be damaged while we
// read: they are read with pread(2), never mapped, and a page that cannot be read
// is one that differs.
class ParentPages {
 public:
  // Of one task. `files`: relative to `directory`. Whatever cannot be opened compares as different.
  ParentPages(int directory, const std::vector<std::string>& files, const std::vector<ParentRun>& runs);

  // `equal`: for each page of the piece, whether it reads as in the parent. Gives
  // the number of pages that the parent has. Used by several threads at once.
  uint64_t find_equal(const PagePiece& piece, const unsigned char* content, std::vector<bool>& equal) const;

 private:
  struct File {
    UniqueFd descriptor;
    std::optional<FramedFile> framed;  // it is compressed
  };
  // How many bytes of pages could be read.
  static uint64_t read(const File& file, uint64_t offset, unsigned char* to, uint64_t length_bytes);

  std::vector<File> files_;      // those that a run names; the rest stay closed
  std::vector<ParentRun> runs_;  // `file` is an index in files_
};

// Takes the stretches out of a piece that are as in the parent, as leave_out_zeroes() does with zeroes.
// `kept`, `equal`: the addresses of what is left and of what is not. `compared`: pages that the parent has.
uint64_t leave_out_equal(const PagePiece& piece, const ParentPages& parent, uint64_t shortest_gap,
                         const unsigned char*& bytes, unsigned char* buffer, std::vector<PageRun>& kept,
                         std::vector<PageRun>& equal, uint64_t& compared);

}  // namespace stasis
