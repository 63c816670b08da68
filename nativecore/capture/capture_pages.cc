#include "capture/capture_pages.h"

#include <fcntl.h>

#include <memory>

#include "base/fault_point.h"
#include "base/native_error.h"
#include "base/sys.h"

namespace stasis {

uint64_t page_bytes(const PageMapData& pages) {
  uint64_t total = 0;
  for (const TaskPages& task : pages.tasks) total += run_pages(task.runs) * kPageBytes;
  return total;
}

PageMapData scan_pages(CaptureContext& context) {
  fault_point("scan_pages");
  PageMapData found;
  uint32_t pages_id = context.request.first_pages_id;
  for (size_t i = 0; i < context.data.tasks.size(); ++i) {
    const CapturedTask& task = context.data.tasks[i];
    if (task.zombie) continue;
    STASIS_CONTEXT("finding pages", task.host_pid);
    context.check_abort();
    const UniqueFd pagemap = sys::openat(context.tree.processes()[i]->proc.borrow(), "pagemap", O_RDONLY);
    found.tasks.push_back({task.host_pid, pages_id++, find_page_runs(pagemap.borrow(), task.vmas)});
    for (const Vma& vma : task.vmas) {
      if (has_own_pages(vma)) found.scanned_pages += (vma.end - vma.start) / kPageBytes;
    }
  }
  return found;
}

void write_pages(CaptureContext& context, const PageMapData& pages, PageFiles& files) {
  std::vector<std::unique_ptr<LiveMemory>> memories;
  std::vector<const PageSource*> sources;
  size_t process_index = 0;
  for (const TaskPages& task : pages.tasks) {
    while (context.tree.processes()[process_index]->host_pid != task.host_pid) ++process_index;
    memories.push_back(std::make_unique<LiveMemory>(context.tree.processes()[process_index]->proc));
    sources.push_back(memories.back().get());
  }
  files.write(pages, sources, context.check_abort);
}

}  // namespace stasis
