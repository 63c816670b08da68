// The memory of a frozen tree on its way into page files, in one of three ways:
//
//   a twin    forked inside the window, read after the thaw
//   copied    inside the window into our own memory, because there is little of it
//   written   inside the window into its page file: a tree that stays stopped
//             anyway, or one that could not be forked
//
// Undo: PageFiles and Twin undo themselves.
// If we die here: see there.
#pragma once

#include <memory>
#include <set>
#include <vector>

#include "capture/capture_context.h"
#include "capture/memory_tracking.h"
#include "capture/page_files.h"

namespace stasis {

class MemoryCapture {
 public:
  // N of pages-N.img counts from request.first_pages_id over the tasks that have memory.
  MemoryCapture(CaptureContext& context, PageFiles& files);

  // --- while the tree is stopped

  // Finds the pages of all tasks without a twin, and what has changed since the parent.
  void scan();
  // Of tasks that run on soon: small ones are copied, large ones without a twin written.
  void save_what_has_no_twin(CopySpace& space);
  uint64_t found_bytes() const;

  // --- when it runs again, or at the end of what is to be done while it is stopped

  // Mappings and pages of the twins. Gives the host pids of tasks whose twins
  // lack memory that a fork does not copy: they have to be captured once more.
  std::set<pid_t> read_twins();
  // Everything that has not been written yet.
  void write();

  const PageMapData& pages() const { return pages_; }

 private:
  struct Part {
    size_t task_index = 0;
    std::unique_ptr<CopiedMemory> not_forked;  // of a task with a twin
    std::vector<PageRun> not_forked_runs;
    std::unique_ptr<PageSource> source;
    bool written = false;
  };
  CapturedTask& task_of(const Part& part) const { return context_.data.tasks[part.task_index]; }
  const ProcDir& proc_of(const Part& part) const { return context_.tree.processes()[part.task_index]->proc; }
  void scan_part(size_t index);
  void count_scanned(const CapturedTask& task);
  void leave_to_parent(size_t index);
  const ParentTask* parent_of(const CapturedTask& task) const;
  void save_not_forked(size_t index);
  void write_parts(const std::vector<size_t>& indices, PageFiles::Hurry hurry);

  CaptureContext& context_;
  PageFiles& files_;
  PageMapData pages_;        // one entry per part
  std::vector<Part> parts_;  // one per live task, in order
};

}  // namespace stasis
