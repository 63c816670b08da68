#include "capture/capture_tasks.h"

#include <elf.h>
#include <fcntl.h>
#include <linux/kcmp.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <map>
#include <numeric>
#include <unordered_map>

#include "base/fault_point.h"
#include "base/log_ring.h"
#include "base/native_error.h"
#include "base/parallel.h"
#include "base/sys.h"
#include "capture/capture_host.h"
#include "capture/copy_space.h"
#include "capture/kcmp_index.h"
#include "capture/path_facts.h"

namespace stasis {
namespace {

// More shared memory than this is left to the twin to be described: its page table is empty there, and here each GiB
// costs the kernel 16 ms in smaps and 20 ms in PAGEMAP_SCAN. A fork does not copy it.
constexpr uint64_t kMuchSharedBytes = 16 << 20;
// A longer text of smaps (some 180 mappings) is left to the twin: the kernel takes 10 us for each mapping.
constexpr size_t kShortSmapsBytes = 128 << 10;

// A search for mappings of files takes the kernel 0.2 us for each mapping, a question for one 1 us.
constexpr std::ptrdiff_t kVeryManyMappings = 2000;
constexpr std::ptrdiff_t kQuestionsPerLook = 8;

// The id of a segment may be 0.
bool is_file_backed(const Vma& vma) { return vma.inode != 0 || vma.name.starts_with("/SYSV"); }

// File-backed and shared mappings: what stands behind them.
void capture_mapped_files(CapturedTask& task, const ProcDir& proc, PathChecker& paths) {
  const Vma* before = nullptr;
  for (const Vma& vma : task.vmas) {
    if (!is_file_backed(vma)) continue;
    CapturedMappedFile file;
    file.start = vma.start;
    file.path = paths.facts_of_mapped(vma);
    // The next piece of a program or library is of the same open file.
    const bool next_piece = before && !vma.shared && !before->shared && before->end == vma.start &&
                            before->device == vma.device && before->inode == vma.inode;
    before = &vma;
    file.link_mode = next_piece ? task.mapped_files.back().link_mode
                                : stat_of(proc.borrow(), map_files_name(vma.start, vma.end).c_str(), false).mode & 0777;
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

void use_smaps(CapturedTask& task, const ProcDir& proc, std::string smaps, PathChecker& paths) {
  task.smaps = std::move(smaps);
  task.vmas = parse_maps(task.smaps);
  find_vdso(task);
  task.mapped_files.clear();
  capture_mapped_files(task, proc, paths);
}

uint64_t vdso_address(std::string_view auxv) {
  for (size_t at = 0; at + 16 <= auxv.size(); at += 16) {
    uint64_t entry[2];
    std::memcpy(entry, auxv.data() + at, sizeof entry);
    if (entry[0] == AT_SYSINFO_EHDR) return entry[1];
  }
  return 0;
}

const std::vector<Vma>& known_before(const KnownMappings& mappings, pid_t host_pid) {
  static const std::vector<Vma> nothing;
  const auto known = mappings.find(host_pid);
  return known == mappings.end() ? nothing : known->second;
}

// What the window has to know of the mappings of a task with a twin: where files and shared memory are mapped, stack
// and vdso, and what lies where the parasite wants to be. Nothing, where the kernel cannot be asked. `known`: where
// files were mapped before the freeze, or nothing.
std::vector<Vma> find_needed_mappings(const CapturedTask& task, const ProcDir& proc, const std::vector<Vma>& known) {
  const MappingQuery query(proc);
  if (!query.is_supported()) return {};
  std::map<uint64_t, Vma> found;
  const auto add = [&](uint64_t from, uint64_t to, bool file_backed) {
    while (from < to) {
      std::optional<Vma> vma = query.at_or_after(from, file_backed);
      if (!vma || vma->start >= to) return;
      from = vma->end;
      found.insert_or_assign(vma->start, std::move(*vma));
    }
  };
  if (known.empty()) add(0, UINT64_MAX, true);
  for (const Vma& vma : known) add(vma.start, vma.end, false);
  for (const uint64_t address : {stat_start_stack(task.stat), vdso_address(task.auxv)})
    add(address, address + 1, false);
  add(parasite::kHomeAddress, parasite::kHomeAddress + parasite::kHomeBytes, false);
  std::vector<Vma> vmas;
  for (auto& entry : found) vmas.push_back(std::move(entry.second));
  return vmas;
}

// As little as the window needs. Of a task that gets a twin that is where its
// mappings lie; everything else about them is read from the twin after the thaw.
void capture_mappings_in_window(CaptureContext& context, CapturedTask& task, const ProcDir& proc, PathChecker& paths) {
  if (!context.reaper) return use_smaps(task, proc, proc.read("smaps"), paths);
  const uint64_t private_bytes = status_bytes(task.status, "RssAnon") + status_bytes(task.status, "VmSwap");
  // A fork does not lock memory, so the twin cannot tell what is locked.
  const bool in_window = context.read_in_window.contains(task.host_pid) || status_bytes(task.status, "VmLck") > 0;
  bool wanted = private_bytes >= kWorthATwinBytes || status_bytes(task.status, "RssShmem") >= kMuchSharedBytes ||
                context.many_mappings.contains(task.host_pid);
  if (in_window) {
    use_smaps(task, proc, proc.read("smaps"), paths);
  } else if (!wanted) {
    if (std::optional<std::string> smaps = proc.read_if_short("smaps", kShortSmapsBytes)) {
      use_smaps(task, proc, std::move(*smaps), paths);
    } else {
      wanted = true;
    }
  }
  if (!wanted) return;
  if (!in_window) {
    const bool all = !context.request.tracking_token.empty() || !context.request.parent_token.empty();
    if (!all) task.vmas = find_needed_mappings(task, proc, known_before(context.many_mappings, task.host_pid));
    if (task.vmas.empty()) task.vmas = parse_maps(proc.read("maps"));
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
                     const CapturedTask* root, PathMemo& path_memo) {
  STASIS_CONTEXT("capturing process", process.host_pid);
  const ProcDir& proc = process.proc;
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
  PathChecker paths(proc, path_memo, namespace_inode(task.namespaces, "mnt"));
  capture_mappings_in_window(context, task, proc, paths);
  task.stale_parasites = find_stale_parasites(task.host_pid, task.vmas);
  if (!task.stale_parasites.empty()) forgo_twin(task, proc);
  task.exe = paths.facts_of("exe");
  task.cwd = paths.facts_of("cwd");
  task.root = paths.facts_of("root");
  if (!root || namespace_inode(root->namespaces, "user") != namespace_inode(task.namespaces, "user")) {
    task.uid_map = proc.read_or_empty("uid_map");
    task.gid_map = proc.read_or_empty("gid_map");
    task.setgroups = proc.read_or_empty("setgroups");
  }
  if (!root || namespace_inode(root->namespaces, "time") != namespace_inode(task.namespaces, "time")) {
    task.timens_offsets = proc.read_or_empty("timens_offsets");
  }
  const TracedThread& leader = process.threads.front();
  task.stopped = leader.group_stop_signal != 0;
  task.stop_signal = static_cast<uint32_t>(leader.group_stop_signal);
}

constexpr int kShareable[] = {KCMP_FILES, KCMP_VM, KCMP_FS, KCMP_SIGHAND};

// For each task the first in the tree that it shares this kind of object with: itself, if there is none before.
std::vector<uint32_t> find_first_sharers(const std::vector<CapturedTask>& tasks, int type,
                                         const std::vector<pid_t>& hint) {
  std::unordered_map<pid_t, uint32_t> place;
  for (uint32_t i = 0; i < hint.size(); ++i) place[hint[i]] = i;
  const auto place_of = [&](uint32_t i) {
    const auto known = place.find(tasks[i].host_pid);
    return known == place.end() ? UINT32_MAX : known->second;
  };
  std::vector<uint32_t> order(tasks.size()), first(tasks.size()), members(tasks.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return place_of(a) < place_of(b); });
  KcmpIndex known(type);
  std::iota(members.begin(), members.end(), 0u);
  for (const uint32_t i : order)
    if (!tasks[i].zombie) members[i] = known.find_or_add(tasks[i].host_pid, 0, i).value_or(i);
  std::iota(first.begin(), first.end(), 0u);
  for (uint32_t i = 0; i < tasks.size(); ++i) first[members[i]] = std::min(first[members[i]], i);
  for (uint32_t i = 0; i < tasks.size(); ++i) members[i] = first[members[i]];
  return members;
}

void find_shared(CaptureContext& context) {
  std::vector<CapturedTask>& tasks = context.data.tasks;
  std::array<std::vector<uint32_t>, std::size(kShareable)> first;
  parallel_for(tasks.size() > 1 ? std::size(kShareable) : 0, kMaximalWorkers, [&](size_t kind, bool) {
    static const std::vector<pid_t> no_hint;
    const auto hint = context.kcmp_orders.find(kShareable[kind]);
    first[kind] =
        find_first_sharers(tasks, kShareable[kind], hint == context.kcmp_orders.end() ? no_hint : hint->second);
  });
  for (uint32_t i = 0; i < tasks.size(); ++i) {
    CapturedTask& task = tasks[i];
    if (task.zombie) continue;
    task.fd_table_host_pid = tasks.size() > 1 ? tasks[first[0][i]].host_pid : task.host_pid;
    if (tasks.size() == 1) continue;
    if (const uint32_t other = first[1][i]; other != i) task.shares_vm = tasks[other].shares_vm = true;
    if (const uint32_t other = first[2][i]; other != i) task.shares_fs = tasks[other].shares_fs = true;
    if (const uint32_t other = first[3][i]; other != i) task.shares_sighand = tasks[other].shares_sighand = true;
  }
}

}  // namespace

void capture_mappings(CapturedTask& task, const ProcDir& proc) {
  PathChecker paths(proc);
  use_smaps(task, proc, proc.read("smaps"), paths);
}

void capture_mappings_of_twin(CapturedTask& task) {
  PathChecker paths(task.twin->proc());
  use_smaps(task, task.twin->proc(), task.twin->read_smaps(), paths);
}

KnownMappings find_many_mappings_before_freeze(const std::vector<ProcDir>& tree) {
  constexpr std::ptrdiff_t kSmapsBytesPerMapping = 700;
  KnownMappings many;
  for (const ProcDir& proc : tree) {
    const std::string maps = proc.read_or_empty("maps");
    const std::ptrdiff_t count = std::count(maps.begin(), maps.end(), '\n');
    if (count * kSmapsBytesPerMapping <= static_cast<std::ptrdiff_t>(kShortSmapsBytes)) continue;
    std::vector<Vma>& known = many[proc.host_pid()];
    if (count < kVeryManyMappings) continue;
    known = parse_maps(maps);
    std::erase_if(known, [](const Vma& vma) { return !is_file_backed(vma); });
    if (static_cast<std::ptrdiff_t>(known.size()) * kQuestionsPerLook > count) known.clear();
  }
  return many;
}

KcmpOrders order_tasks_before_freeze(const std::vector<ProcDir>& tree) {
  KcmpOrders orders;
  if (tree.size() < 3) return orders;
  for (const int type : kShareable) {
    std::vector<pid_t>& order = orders[type];
    for (const ProcDir& proc : tree) {
      // By hand, because it changes while we look; of a process that has ended kcmp says 0.
      size_t low = 0, high = order.size();
      while (low < high) {
        const size_t middle = (low + high) / 2;
        if (sys::try_kcmp(order[middle], proc.host_pid(), type, 0, 0).value == 1) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      order.insert(order.begin() + static_cast<std::ptrdiff_t>(low), proc.host_pid());
    }
  }
  return orders;
}

void ask_once_before_freeze(const std::vector<ProcDir>& tree) {
  constexpr size_t kFewProcesses = 16;  // of a hundred it takes 16 ms, and saves 1
  if (tree.size() > kFewProcesses) return;
  for (const ProcDir& proc : tree) {
    try {
      namespace_ids(proc.borrow());
      PathChecker paths(proc);
      for (const char* name : {"exe", "cwd", "root"}) paths.facts_of(name);
      CapturedTask unused;
      if (std::optional<std::string> smaps = proc.read_if_short("smaps", kShortSmapsBytes))
        use_smaps(unused, proc, std::move(*smaps), paths);
    } catch (const NativeError& error) {
      log_line("%d has ended before the freeze: %s", proc.host_pid(), error.what());
    }
  }
}

void capture_namespace_ids(CaptureContext& context) {
  std::vector<CapturedTask>& tasks = context.data.tasks;
  tasks.resize(context.tree.processes().size());
  parallel_for(tasks.size(), kMaximalWorkers, [&](size_t index, bool) {
    const TracedProcess& process = *context.tree.processes()[index];
    tasks[index].host_pid = process.host_pid;
    tasks[index].zombie = process.zombie;
    if (!process.zombie) tasks[index].namespaces = namespace_ids(process.proc.borrow());
  });
}

void capture_tasks(CaptureContext& context) {
  fault_point("capture_tasks");
  std::vector<CapturedTask>& tasks = context.data.tasks;
  PathMemo path_memo;
  // The root by itself: the others are compared with it.
  capture_process(context, tasks[0], *context.tree.processes()[0], nullptr, path_memo);
  parallel_for(tasks.size() - 1, kMaximalWorkers, [&](size_t index, bool in_caller) {
    if (in_caller) context.check_abort();
    capture_process(context, tasks[index + 1], *context.tree.processes()[index + 1], &tasks[0], path_memo);
  });
  find_shared(context);
  keep_to_copy_on_write_limit(context);
  for (size_t i = 0; i < tasks.size(); ++i) {
    if (tasks[i].stale_parasites.empty()) continue;
    let_threads_go_home(context.tree, *context.tree.processes()[i], tasks[i].stale_parasites, context.deadline);
  }
}

}  // namespace stasis
