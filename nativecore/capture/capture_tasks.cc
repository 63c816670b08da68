#include "capture/capture_tasks.h"

#include <fcntl.h>
#include <linux/kcmp.h>

#include <cstdio>
#include <map>
#include <tuple>

#include "base/fault_point.h"
#include "base/native_error.h"
#include "base/parallel.h"
#include "base/sys.h"
#include "capture/capture_host.h"
#include "capture/kcmp_index.h"
#include "capture/path_facts.h"

namespace stasis {
namespace {

// Less than this is copied inside the window as quickly as it is forked.
constexpr uint64_t kWorthATwinBytes = 1 << 20;
// More shared memory than this is left to the twin to be described: its page table is empty there, and here each GiB
// costs the kernel 16 ms in smaps and 20 ms in PAGEMAP_SCAN. A fork does not copy it.
constexpr uint64_t kMuchSharedBytes = 16 << 20;
// A longer text of smaps (some 180 mappings) is left to the twin: the kernel takes 10 us for each mapping.
constexpr size_t kShortSmapsBytes = 128 << 10;

uint64_t namespace_inode(const CapturedTask& task, std::string_view kind) {
  for (const CapturedNamespaceId& id : task.namespaces) {
    if (id.kind == kind) return id.inode;
  }
  return 0;
}

// File-backed and shared mappings: what stands behind them.
void capture_mapped_files(CapturedTask& task, const ProcDir& proc, PathChecker& paths) {
  // A library is mapped in five pieces, which name the same file: looked at once.
  std::map<std::tuple<uint64_t, uint64_t, std::string>, CapturedPath> known;
  for (const Vma& vma : task.vmas) {
    if (vma.inode == 0 && !vma.name.starts_with("/SYSV")) continue;  // the id of a segment may be 0
    const std::string name = map_files_name(vma.start, vma.end);
    CapturedMappedFile file;
    file.start = vma.start;
    const auto [entry, is_new] = known.try_emplace({vma.device, vma.inode, vma.name});
    if (is_new) entry->second = paths.facts_of(name.c_str());
    file.path = entry->second;
    file.link_mode = stat_of(proc.borrow(), name.c_str(), false).mode & 0777;
    // Without the privilege for map_files the name from smaps has to do.
    if (file.path.link.empty()) file.path.link = vma.name;
    task.mapped_files.push_back(std::move(file));
  }
}

void find_vdso(CapturedTask& task) {
  for (const Vma& vma : task.vmas) {
    if (vma.name == "[vdso]") task.vdso_start = vma.start;
  }
}

void use_smaps(CapturedTask& task, const ProcDir& proc, std::string smaps) {
  task.smaps = std::move(smaps);
  task.vmas = parse_maps(task.smaps);
  find_vdso(task);
  PathChecker paths(proc);
  task.mapped_files.clear();
  capture_mapped_files(task, proc, paths);
}

uint64_t status_bytes(std::string_view status, std::string_view name) {
  return static_cast<uint64_t>(status_number(status, name, 0)) << 10;  // "RssAnon:  1234 kB"
}

// As little as the window needs. Of a task that gets a twin that is where its
// mappings lie; everything else about them is read from the twin after the thaw.
void capture_mappings_in_window(CaptureContext& context, CapturedTask& task, const ProcDir& proc) {
  if (!context.reaper) return capture_mappings(task, proc);
  const uint64_t private_bytes = status_bytes(task.status, "RssAnon") + status_bytes(task.status, "VmSwap");
  // A fork does not lock memory, so the twin cannot tell what is locked.
  const bool in_window = context.read_in_window.contains(task.host_pid) || status_bytes(task.status, "VmLck") > 0;
  bool wanted = private_bytes >= kWorthATwinBytes || status_bytes(task.status, "RssShmem") >= kMuchSharedBytes;
  if (in_window) {
    capture_mappings(task, proc);
  } else if (!wanted) {
    if (std::optional<std::string> smaps = proc.read_if_short("smaps", kShortSmapsBytes)) {
      use_smaps(task, proc, std::move(*smaps));
    } else {
      wanted = true;
    }
  }
  if (!wanted) return;
  if (!in_window) {
    task.vmas = parse_maps(proc.read("maps"));
    find_vdso(task);
  }
  task.total_pages = read_total_pages(proc);
  task.twin_wish = {true, private_bytes};
}

// What an earlier run has left there would be in the twin, too.
void forgo_twin(CapturedTask& task, const ProcDir& proc) {
  task.twin_wish = {};
  if (task.smaps.empty()) capture_mappings(task, proc);
}

void keep_to_copy_on_write_limit(CaptureContext& context) {
  uint64_t total_bytes = 0;
  for (const CapturedTask& task : context.data.tasks) total_bytes += task.twin_wish.memory_bytes;
  if (total_bytes <= context.request.copy_on_write_bytes) return;
  context.data.remarks.push_back("memory was copied while the processes stood still: up to " +
                                 std::to_string(total_bytes) +
                                 " bytes could be needed to copy it on write, and there are " +
                                 std::to_string(context.request.copy_on_write_bytes));
  for (size_t i = 0; i < context.data.tasks.size(); ++i) {
    if (context.data.tasks[i].twin_wish.wanted) forgo_twin(context.data.tasks[i], context.tree.processes()[i]->proc);
  }
}

void capture_process(CaptureContext& context, CapturedTask& task, const TracedProcess& process,
                     const CapturedTask* root) {
  STASIS_CONTEXT("capturing process", process.host_pid);
  const ProcDir& proc = process.proc;
  task.host_pid = process.host_pid;
  task.zombie = process.zombie;
  task.stat = proc.read("stat");
  task.status = proc.read("status");
  task.parent_host_pid = root ? stat_parent(task.stat) : 0;
  if (task.zombie) return;
  task.auxv = proc.read("auxv");
  task.cgroup = proc.read("cgroup");
  task.timers = proc.read_or_empty("timers");  // needs CONFIG_CHECKPOINT_RESTORE
  task.oom_score_adj = proc.read_or_empty("oom_score_adj");
  task.loginuid = proc.read_or_empty("loginuid");
  task.personality = proc.read_or_empty("personality");
  capture_mappings_in_window(context, task, proc);
  task.stale_parasites = find_stale_parasites(task.host_pid, task.vmas);
  if (!task.stale_parasites.empty()) forgo_twin(task, proc);
  PathChecker paths(proc);
  task.exe = paths.facts_of("exe");
  task.cwd = paths.facts_of("cwd");
  task.root = paths.facts_of("root");
  task.namespaces = namespace_ids(proc.borrow());
  if (!root || namespace_inode(*root, "user") != namespace_inode(task, "user")) {
    task.uid_map = proc.read_or_empty("uid_map");
    task.gid_map = proc.read_or_empty("gid_map");
    task.setgroups = proc.read_or_empty("setgroups");
  }
  if (!root || namespace_inode(*root, "time") != namespace_inode(task, "time")) {
    task.timens_offsets = proc.read_or_empty("timens_offsets");
  }
  const TracedThread& leader = process.threads.front();
  task.stopped = leader.group_stop_signal != 0;
  task.stop_signal = static_cast<uint32_t>(leader.group_stop_signal);
}

void find_shared(std::vector<CapturedTask>& tasks) {
  KcmpIndex tables(KCMP_FILES), memories(KCMP_VM), directories(KCMP_FS), handlers(KCMP_SIGHAND);
  for (uint32_t i = 0; i < tasks.size(); ++i) {
    CapturedTask& task = tasks[i];
    if (task.zombie) continue;
    const std::optional<uint32_t> table = tables.find_or_add(task.host_pid, 0, i);
    task.fd_table_host_pid = table ? tasks[*table].host_pid : task.host_pid;
    if (const auto other = memories.find_or_add(task.host_pid, 0, i)) task.shares_vm = tasks[*other].shares_vm = true;
    if (const auto other = directories.find_or_add(task.host_pid, 0, i))
      task.shares_fs = tasks[*other].shares_fs = true;
    if (const auto other = handlers.find_or_add(task.host_pid, 0, i))
      task.shares_sighand = tasks[*other].shares_sighand = true;
  }
}

}  // namespace

void capture_mappings(CapturedTask& task, const ProcDir& proc) { use_smaps(task, proc, proc.read("smaps")); }

void capture_mappings_of_twin(CapturedTask& task) { use_smaps(task, task.twin->proc(), task.twin->read_smaps()); }

void capture_tasks(CaptureContext& context) {
  fault_point("capture_tasks");
  std::vector<CapturedTask>& tasks = context.data.tasks;
  tasks.resize(context.tree.processes().size());
  // The root by itself: the others are compared with it.
  capture_process(context, tasks[0], *context.tree.processes()[0], nullptr);
  parallel_for(tasks.size() - 1, kMaximalWorkers, [&](size_t index, bool in_caller) {
    if (in_caller) context.check_abort();
    capture_process(context, tasks[index + 1], *context.tree.processes()[index + 1], &tasks[0]);
  });
  find_shared(tasks);
  keep_to_copy_on_write_limit(context);
  for (size_t i = 0; i < tasks.size(); ++i) {
    if (tasks[i].stale_parasites.empty()) continue;
    let_threads_go_home(context.tree, *context.tree.processes()[i], tasks[i].stale_parasites, context.deadline);
  }
}

}  // namespace stasis
