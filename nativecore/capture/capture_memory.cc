#include "capture/capture_memory.h"

#include <fcntl.h>

#include <algorithm>
#include <deque>

#include "base/control_channel.h"
#include "base/fault_point.h"
#include "base/log_ring.h"
#include "base/native_error.h"
#include "base/parallel.h"
#include "base/sys.h"
#include "capture/capture_tasks.h"
#include "capture/parent_pages.h"
#include "capture/shared_memory_copies.h"

namespace stasis {
namespace {

// More than this is not held in memory of ours, but written.
constexpr uint64_t kMaximalCopiedBytes = uint64_t{512} << 20;

std::vector<PageRun> find_runs_in(const ProcDir& proc, const std::vector<Vma>& vmas) {
  return find_page_runs(sys::openat(proc.borrow(), "pagemap", O_RDONLY).borrow(), vmas);
}

bool is_forked(const Vma& vma) { return !vma.not_forked && !vma.wiped_by_fork; }

std::vector<Vma> select(const std::vector<Vma>& vmas, bool forked) {
  std::vector<Vma> selected;
  std::copy_if(vmas.begin(), vmas.end(), std::back_inserter(selected),
               [&](const Vma& vma) { return is_forked(vma) == forked; });
  return selected;
}

// Where an absent page is not one of zeroes.
std::vector<PageRun> backed(const std::vector<Vma>& vmas) {
  std::vector<PageRun> ranges;
  for (const Vma& vma : vmas) {
    if (vma.inode != 0 || vma.device != 0 || vma.special || vma.name == "[vdso]")
      ranges.push_back({vma.start, (vma.end - vma.start) / kPageBytes});
  }
  return ranges;
}

// Shared memory is not copied on write, so what there is of it has to be known in the window.
bool knows_all_shared(const std::vector<Vma>& in_window, const std::vector<Vma>& of_twin) {
  const uint64_t device = find_shared_memory_device();
  std::set<SharedObjectKey> known;
  for (const Vma& vma : in_window)
    if (vma.device == device) known.insert(shared_object_key(vma.name, vma.inode));
  return std::all_of(of_twin.begin(), of_twin.end(), [&](const Vma& vma) {
    return vma.device != device || vma.name.empty() || known.contains(shared_object_key(vma.name, vma.inode));
  });
}

}  // namespace

MemoryCapture::MemoryCapture(CaptureContext& context, PageFiles& files) : context_(context), files_(files) {
  uint32_t pages_id = context.request.first_pages_id;
  for (size_t i = 0; i < context.data.tasks.size(); ++i) {
    if (context.data.tasks[i].zombie) continue;
    parts_.emplace_back().task_index = i;
    pages_.tasks.push_back({context.data.tasks[i].host_pid, pages_id++, {}, {}, false});
  }
}

void MemoryCapture::scan_part(size_t index) {
  const CapturedTask& task = task_of(parts_[index]);
  STASIS_CONTEXT("finding pages", task.host_pid);
  pages_.tasks[index].runs = find_runs_in(proc_of(parts_[index]), task.vmas);
  leave_to_parent(index);
}

void MemoryCapture::leave_to_parent(size_t index) {
  TaskPages& pages = pages_.tasks[index];
  const std::vector<PageRun>* const changes = context_.tracking.changes_of(pages.host_pid);
  if (!changes) return;
  pages.noted = true;
  SplitRuns split = split_runs(pages.runs, *changes);
  pages.runs = std::move(split.inside);
  pages.unchanged_runs = std::move(split.outside);
}

void MemoryCapture::scan() {
  fault_point("scan_pages");
  parallel_for(parts_.size(), kMaximalWorkers, [&](size_t index, bool in_caller) {
    if (in_caller) context_.check_abort();
    context_.tracking.find_changes(task_of(parts_[index]), proc_of(parts_[index]));
    if (task_of(parts_[index]).twin) {
      save_not_forked(index);
    } else {
      scan_part(index);
    }
  });
  for (const Part& part : parts_) count_scanned(task_of(part));
}

void MemoryCapture::count_scanned(const CapturedTask& task) {
  if (task.smaps.empty()) return;  // not before the twin has told which mappings there are
  for (const Vma& vma : task.vmas) {
    if (has_own_pages(vma)) pages_.scanned_pages += (vma.end - vma.start) / kPageBytes;
  }
}

// Only where smaps were read inside the window is it known which that is.
void MemoryCapture::save_not_forked(size_t index) {
  Part& part = parts_[index];
  const CapturedTask& task = task_of(part);
  const std::vector<Vma> vmas = select(task.vmas, false);
  if (vmas.empty()) return;
  STASIS_CONTEXT("copying memory that a fork leaves out", task.host_pid);
  part.not_forked_runs = find_runs_in(proc_of(part), vmas);
  part.not_forked = std::make_unique<CopiedMemory>(LiveMemory(proc_of(part)), part.not_forked_runs);
}

uint64_t MemoryCapture::found_bytes() const {
  uint64_t total = 0;
  for (const TaskPages& task : pages_.tasks) total += run_pages(task.runs) * kPageBytes;
  return total;
}

void MemoryCapture::save_what_has_no_twin(CopySpace& space) {
  std::vector<size_t> to_copy, to_write;
  uint64_t copied_bytes = 0;
  for (size_t i = 0; i < parts_.size(); ++i) {
    if (task_of(parts_[i]).twin) continue;
    const uint64_t bytes = run_pages(pages_.tasks[i].runs) * kPageBytes;
    if (copied_bytes + bytes <= kMaximalCopiedBytes && bytes <= kMaximalCopiedBytes / 16) {
      copied_bytes += bytes;
      to_copy.push_back(i);
    } else {
      to_write.push_back(i);
    }
  }
  parallel_for(to_copy.size(), kMaximalWorkers, [&](size_t number, bool in_caller) {
    if (in_caller) context_.check_abort();
    Part& part = parts_[to_copy[number]];
    STASIS_CONTEXT("copying pages", task_of(part).host_pid);
    part.source = std::make_unique<CopiedMemory>(LiveMemory(proc_of(part)), pages_.tasks[to_copy[number]].runs, &space);
  });
  if (!to_write.empty() && context_.request.write_pages) write_parts(to_write, PageFiles::Hurry::yes);
}

std::set<pid_t> MemoryCapture::read_twins() {
  std::set<pid_t> incomplete;
  for (size_t i = 0; i < parts_.size(); ++i) {
    Part& part = parts_[i];
    CapturedTask& task = task_of(part);
    if (!task.twin) continue;
    STASIS_CONTEXT("reading the twin", task.host_pid);
    context_.check_abort();
    if (task.smaps.empty()) {
      const std::vector<Vma> in_window = std::move(task.vmas);
      capture_mappings_of_twin(task);
      const bool wiped =
          std::any_of(task.vmas.begin(), task.vmas.end(), [](const Vma& vma) { return vma.wiped_by_fork; });
      if (!knows_all_shared(in_window, task.vmas)) {
        log_line("%d had mapped shared memory that was not looked for", task.host_pid);
        incomplete.insert(task.host_pid);
        continue;
      }
      if (wiped || task.twin->read_total_pages() != task.total_pages) {
        log_line("the twin of %d lacks memory that a fork does not copy", task.host_pid);
        incomplete.insert(task.host_pid);
        continue;
      }
      count_scanned(task);
    }
    std::vector<PageRun>& runs = pages_.tasks[i].runs;
    runs = find_runs_in(task.twin->proc(), select(task.vmas, true));
    const auto middle = runs.insert(runs.end(), part.not_forked_runs.begin(), part.not_forked_runs.end());
    std::inplace_merge(runs.begin(), middle, runs.end(),
                       [](const PageRun& one, const PageRun& other) { return one.address < other.address; });
    leave_to_parent(i);
    part.source = std::make_unique<TwinMemory>(task.twin->proc(), part.not_forked.get());
  }
  return incomplete;
}

void MemoryCapture::write() {
  if (!context_.request.write_pages) return;
  std::vector<size_t> rest;
  for (size_t i = 0; i < parts_.size(); ++i) {
    if (!parts_[i].written) rest.push_back(i);
  }
  write_parts(rest, PageFiles::Hurry::no);
}

// Of the same pid, which may be another process than then: its pages are compared, not believed in.
const ParentTask* MemoryCapture::parent_of(const CapturedTask& task) const {
  const std::vector<int32_t> pids = status_numbers(task.status, "NSpid");
  const int32_t ns_pid = pids.empty() ? task.host_pid : pids.back();
  for (const ParentTask& known : context_.request.parent_tasks) {
    if (known.ns_pid == ns_pid) return &known;
  }
  return nullptr;
}

void MemoryCapture::write_parts(const std::vector<size_t>& indices, PageFiles::Hurry hurry) {
  std::vector<PageFiles::Content> contents;
  std::deque<ParentPages> parents;
  for (const size_t index : indices) {
    Part& part = parts_[index];
    if (!part.source) part.source = std::make_unique<LiveMemory>(proc_of(part));
    const TaskPages& pages = pages_.tasks[index];
    contents.push_back({pages.host_pid, pages.pages_id, pages.runs, part.source.get(), backed(task_of(part).vmas)});
    const bool compare = !pages.noted && hurry == PageFiles::Hurry::no;
    if (const ParentTask* known = compare ? parent_of(task_of(part)) : nullptr)
      contents.back().parent = &parents.emplace_back(kParentDescriptor, context_.request.parent_files, known->runs);
    part.written = true;
  }
  pages_.skipped_zero_pages += files_.write(contents, hurry, context_.check_abort);
  for (size_t i = 0; i < indices.size(); ++i) {
    TaskPages& pages = pages_.tasks[indices[i]];
    pages.runs = std::move(contents[i].runs);
    if (!pages.noted) pages.unchanged_runs = std::move(contents[i].equal);
    pages_.compared_pages += contents[i].compared_pages;
  }
}

}  // namespace stasis
