// Content of a file that has no name, a memory object or a deleted file: where
// its data lies, read as pages, and copies of it that are made while its owners
// stand still.
//
// Undo: copies are freed with their object. If we die here: files are only read.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/sys.h"
#include "capture/page_files.h"
#include "capture/page_runs.h"

namespace stasis {

// Addresses are offsets in the file. What is not in a run is a hole.
std::vector<PageRun> find_data_runs(int file, uint64_t size_bytes);

// Addresses of its pieces are offsets in the file.
class ObjectContent : public PageSource {
 public:
  explicit ObjectContent(int file) : file_(file) {}
  const unsigned char* read(const PagePiece& piece, unsigned char* buffer) const override;

 private:
  int file_;  // borrowed
};

// Pieces that have been copied here, in the order of their runs.
class CopiedObject : public PageSource {
 public:
  // `prepared` has room for the copy, or is null.
  CopiedObject(uint64_t length_bytes, unsigned char* prepared);
  unsigned char* place_of(const PagePiece& piece) { return bytes_ + piece.file_offset; }
  const unsigned char* read(const PagePiece& piece, unsigned char*) const override {
    return bytes_ + piece.file_offset;
  }

 private:
  sys::Mapping own_;
  unsigned char* bytes_;
};

struct CopyOrder {
  int file = -1;
  const std::vector<PageRun>* runs = nullptr;
  CopiedObject* to = nullptr;
};

// `check_abort` is called by the calling thread now and then, and may throw.
void copy_objects(const std::vector<CopyOrder>& orders, const std::function<void()>& check_abort);

}  // namespace stasis
