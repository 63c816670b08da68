#include "capture/capture_threads.h"

#include <sched.h>
#include <sys/syscall.h>

#include <cstdio>
#include <map>

#include "base/fault_point.h"
#include "base/native_error.h"
#include "base/sys.h"

namespace stasis {
namespace {

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

void capture_thread(CapturedThread& thread, const CapturedTask& task, const TracedProcess& process, pid_t host_tid) {
  STASIS_CONTEXT("capturing thread", host_tid);
  thread.host_tid = host_tid;
  const auto read = [&](const char* file) {
    char name[96];
    std::snprintf(name, sizeof name, "task/%d/%s", host_tid, file);
    return process.proc.read_or_empty(name);
  };
  thread.status = host_tid == task.host_pid ? task.status : read("status");
  thread.comm = read("comm");
  if (!thread.comm.empty() && thread.comm.back() == '\n') thread.comm.pop_back();
  thread.registers = read_registers(host_tid);
  thread.xstate = read_xstate(host_tid);
  thread.signal_mask = read_signal_mask(host_tid);
  thread.pending_signals = read_pending_signals(host_tid, false);
  thread.rseq = read_rseq(host_tid, task.host_pid, thread.registers.rip);
  sys::try_syscall(SYS_get_robust_list, static_cast<uint64_t>(host_tid),
                   reinterpret_cast<uint64_t>(&thread.robust_list_head),
                   reinterpret_cast<uint64_t>(&thread.robust_list_length_bytes));
  capture_scheduling(thread);
  thread.security_label = read("attr/current");
  if (host_tid != task.host_pid) {
    thread.cgroup = read("cgroup");
    if (thread.cgroup == task.cgroup) thread.cgroup.clear();
  }
}

}  // namespace

void capture_threads(CaptureContext& context) {
  fault_point("capture_threads");
  SeccompIndex seccomp_index;
  for (size_t i = 0; i < context.data.tasks.size(); ++i) {
    CapturedTask& task = context.data.tasks[i];
    if (task.zombie) continue;
    context.check_abort();
    const TracedProcess& process = *context.tree.processes()[i];
    task.threads.resize(process.threads.size());
    for (size_t j = 0; j < process.threads.size(); ++j) {
      CapturedThread& thread = task.threads[j];
      capture_thread(thread, task, process, process.threads[j].host_tid);
      if (status_number(thread.status, "Seccomp", 0) == 2) {
        STASIS_CONTEXT("reading seccomp filters", thread.host_tid);
        thread.seccomp_filters = intern_seccomp_filters(thread.host_tid, seccomp_index, context.data.seccomp_filters);
      }
    }
    task.shared_pending_signals = read_pending_signals(task.host_pid, true);
    task.compat = task.threads.front().registers.cs != kUserCodeSegment64;
  }
}

}  // namespace stasis
