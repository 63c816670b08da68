// Page contents: which pages of each address space differ from what a fresh
// mapping would hold, and their bytes into pages-N.img.
//
// Undo: PageFiles removes the files that were created, unless they are kept.
// If we die here: the target has seen nothing; page files without an inventory
// are not a checkpoint.
#pragma once

#include "capture/capture_context.h"

namespace stasis {

// The pages to write; N counts from request.first_pages_id over the tasks that have memory.
PageMapData scan_pages(CaptureContext& context);

// The page files of one capture: removed at the end of the scope unless kept.
class PageFiles {
 public:
  explicit PageFiles(int images_directory) : images_directory_(images_directory) {}
  PageFiles(const PageFiles&) = delete;
  PageFiles& operator=(const PageFiles&) = delete;
  ~PageFiles();
  // Preconditions: no file of these names exists that matters.
  void write(CaptureContext& context, const PageMapData& pages);
  // The other side has been told of them and owns them now.
  void keep() { names_.clear(); }

 private:
  int images_directory_;
  std::vector<std::string> names_;
};

uint64_t page_bytes(const PageMapData& pages);

}  // namespace stasis
