// Shared memory that lies in the kernel's own tmpfs: shared anonymous mappings,
// memfds, System V segments. Each object is captured once, however many
// processes have it mapped or open. A fork does not copy it, so of a tree that
// lives on it is copied while the tree stands still; not for a pre-dump, of which
// the next round compares every byte.
//
// Undo: PageFiles undoes itself; objects are only read, through descriptors of our own.
// If we die here: the target has seen nothing.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "base/unique_fd.h"
#include "capture/capture_context.h"
#include "capture/page_files.h"
#include "capture/shared_memory_copies.h"

namespace stasis {

class SharedMemoryCapture {
 public:
  // N of pages-N.img counts on after the tasks'.
  SharedMemoryCapture(CaptureContext& context, PageFiles& files);

  // --- while the tree is stopped

  // Finds the objects of all tasks, and their pages; fills context.data.shared_memory.
  // Preconditions: mappings and open files of the tree are known.
  void scan();
  // Of a tree that runs on soon: copied, or written if there is no room to hold a copy.
  void save(SharedMemoryCopies& copies);
  // How much save() has to move.
  uint64_t bytes_to_save() const;

  // --- later, or at the end of what is to be done while it is stopped

  // Unless written already. What reads the same in the parent checkpoint is left to it, if there is no hurry.
  void write(PageFiles::Hurry hurry = PageFiles::Hurry::no);

  uint64_t device() const { return device_; }
  const std::vector<SharedPages>& pages() const { return pages_; }

 private:
  struct Object {
    UniqueFd file;  // for reading
    std::unique_ptr<PageSource> source;
  };
  void find_mapped();
  void find_open();
  void find_unattached();
  bool knows_segment(uint64_t id) const;
  void add(const ProcDir& proc, const char* name, std::string link);
  void find_all_runs();
  void find_runs(size_t index);
  std::vector<const ParentObject*> find_parents() const;

  CaptureContext& context_;
  PageFiles& files_;
  uint64_t device_;                 // of the kernel's own tmpfs
  std::vector<SharedPages> pages_;  // one entry per object
  std::vector<Object> objects_;
  bool written_ = false;
};

}  // namespace stasis
