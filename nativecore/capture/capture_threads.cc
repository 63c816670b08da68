#include "capture/capture_threads.h"

#include <sched.h>
#include <sys/syscall.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <map>

#include "base/fault_point.h"
#include "base/native_error.h"
#include "base/parallel.h"
#include "base/sys.h"

namespace stasis {
namespace {

constexpr size_t kChunk = 16;
constexpr uint64_t kIoprioWhoProcess = 1;
constexpr size_t kSchedAttrBytes = 56;          // struct sched_attr of Linux 5.3
constexpr size_t kMaximalAffinityBytes = 1024;  // 8192 CPUs

// Index of each distinct program; the same filters are met once per thread.
using SeccompIndex = std::map<std::pair<std::string, uint64_t>, uint32_t>;

std::vector<uint32_t> intern_seccomp_filters(pid_t host_tid, SeccompIndex& index,
                                             std::vector<SeccompProgram>& programs) {
  std::vector<uint32_t> numbers;
  for (SeccompProgram& program : read_seccomp_filters(host_tid)) {
    const auto [entry, is_new] =
        index.try_emplace({program.instructions, program.flags}, static_cast<uint32_t>(programs.size()));
    if (is_new) programs.push_back(std::move(program));
    numbers.push_back(entry->second);
  }
  return numbers;
}

void capture_scheduling(CapturedThread& thread) {
  const uint64_t host_tid = static_cast<uint64_t>(thread.host_tid);
  char attributes[kSchedAttrBytes] = {};
  if (sys::try_syscall(SYS_sched_getattr, host_tid, reinterpret_cast<uint64_t>(attributes), sizeof attributes, 0)
          .ok()) {
    thread.scheduling.assign(attributes, sizeof attributes);
  }
  char mask[kMaximalAffinityBytes];
  const sys::Try<int64_t> length =
      sys::try_syscall(SYS_sched_getaffinity, host_tid, sizeof mask, reinterpret_cast<uint64_t>(mask));
  if (length.ok()) thread.affinity.assign(mask, static_cast<size_t>(length.value));
  thread.io_priority = static_cast<uint32_t>(sys::try_syscall(SYS_ioprio_get, kIoprioWhoProcess, host_tid).value);
}

// The thread's name as status has it: whole, with backslash and line feed escaped.
std::string command_name(std::string_view status) {
  constexpr std::string_view kLabel = "Name:\t";
  if (!status.starts_with(kLabel)) return {};
  status.remove_prefix(kLabel.size());
  std::string name;
  for (size_t i = 0; i < status.size() && status[i] != '\n'; ++i) {
    const bool escaped = status[i] == '\\' && i + 1 < status.size();
    if (escaped) ++i;
    name += escaped && status[i] == 'n' ? '\n' : status[i];
  }
  return name;
}

// What /proc tells of a thread; any thread of ours may ask. Where the first thread has no security label, nobody has
// one.
void read_thread(CapturedThread& thread, const CapturedTask& task, const TracedProcess& process, bool has_label) {
  const pid_t host_tid = thread.host_tid;
  STASIS_CONTEXT("reading thread", host_tid);
  const auto read = [&](const char* file) {
    char name[96];
    std::snprintf(name, sizeof name, "task/%d/%s", host_tid, file);
    return process.proc.read_or_empty(name);
  };
  thread.status = host_tid == task.host_pid ? task.status : read("status");
  thread.comm = command_name(thread.status);
  sys::try_syscall(SYS_get_robust_list, static_cast<uint64_t>(host_tid),
                   reinterpret_cast<uint64_t>(&thread.robust_list_head),
                   reinterpret_cast<uint64_t>(&thread.robust_list_length_bytes));
  capture_scheduling(thread);
  if (has_label) thread.security_label = read("attr/current");
  if (host_tid != task.host_pid) {
    thread.cgroup = read("cgroup");
    if (thread.cgroup == task.cgroup) thread.cgroup.clear();
  }
}

// A mask without a bit says that the queue is empty.
bool may_have_signals(std::string_view status, std::string_view mask) {
  return status_field(status, mask).find_first_not_of('0') != std::string_view::npos ||
         status_field(status, mask).empty();
}

// What only its tracer may ask.
void trace_thread(CapturedThread& thread, const CapturedTask& task) {
  const pid_t host_tid = thread.host_tid;
  STASIS_CONTEXT("capturing thread", host_tid);
  thread.registers = read_registers(host_tid);
  thread.xstate = read_xstate(host_tid);
  thread.signal_mask = read_signal_mask(host_tid);
  thread.rseq = read_rseq(host_tid, task.host_pid, thread.registers.rip);
}

}  // namespace

void capture_threads(CaptureContext& context) {
  fault_point("capture_threads");
  struct Place {
    CapturedThread* thread;
    size_t task;
  };
  std::vector<Place> places;
  for (size_t i = 0; i < context.data.tasks.size(); ++i) {
    CapturedTask& task = context.data.tasks[i];
    if (task.zombie) continue;
    const TracedProcess& process = *context.tree.processes()[i];
    task.threads.resize(process.threads.size());
    for (size_t j = 0; j < process.threads.size(); ++j) {
      task.threads[j].host_tid = process.threads[j].host_tid;
      places.push_back({&task.threads[j], i});
    }
  }
  if (places.empty()) return;
  const bool labels = !context.tree.root().proc.read_or_empty("attr/current").empty();
  // /proc is read by others while the tracer asks what only it may ask.
  std::atomic<bool> traced = false;
  const auto trace_all = [&] {
    for (const Place& place : places) trace_thread(*place.thread, context.data.tasks[place.task]);
  };
  parallel_for((places.size() + kChunk - 1) / kChunk, kMaximalWorkers, [&](size_t chunk, bool in_caller) {
    if (in_caller && !traced.exchange(true)) {
      context.check_abort();
      trace_all();
    }
    for (size_t i = chunk * kChunk; i < std::min(places.size(), (chunk + 1) * kChunk); ++i) {
      const size_t task = places[i].task;
      read_thread(*places[i].thread, context.data.tasks[task], *context.tree.processes()[task], labels);
    }
  });
  // With little to do the caller may not have had a turn.
  if (!traced) trace_all();
  SeccompIndex seccomp_index;
  for (const Place& place : places) {
    CapturedThread& thread = *place.thread;
    if (may_have_signals(thread.status, "SigPnd"))
      thread.pending_signals = read_pending_signals(thread.host_tid, false);
    if (status_number(thread.status, "Seccomp", 0) != 2) continue;
    STASIS_CONTEXT("reading seccomp filters", thread.host_tid);
    thread.seccomp_filters = intern_seccomp_filters(thread.host_tid, seccomp_index, context.data.seccomp_filters);
  }
  for (CapturedTask& task : context.data.tasks) {
    if (task.zombie) continue;
    if (may_have_signals(task.status, "ShdPnd"))
      task.shared_pending_signals = read_pending_signals(task.host_pid, true);
    task.compat = task.threads.front().registers.cs != kUserCodeSegment64;
  }
}

}  // namespace stasis
