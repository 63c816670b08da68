#include "capture/capture_from_inside.h"

#include <algorithm>
#include <memory>

#include "base/fault_point.h"
#include "base/native_error.h"
#include "capture/capture_tasks.h"
#include "capture/memory_tracking.h"
#include "parasite/infection.h"

namespace stasis {
namespace {

template <typename Structure>
std::string bytes_of(const Structure& structure) {
  return std::string(reinterpret_cast<const char*>(&structure), sizeof structure);
}

uint32_t value_or_zero(int32_t value) { return value < 0 ? 0 : static_cast<uint32_t>(value); }

std::unique_ptr<Infection> infect(CaptureContext& context, CapturedTask& task, TracedProcess& process,
                                  ReturnPathFinder& return_paths) {
  std::vector<InfectedThread> threads;
  for (size_t i = 0; i < task.threads.size(); ++i) {
    const CapturedThread& thread = task.threads[i];
    const bool in_critical_section = !thread.rseq.critical_section.empty();
    threads.push_back({&process.threads[i],
                       {thread.registers, thread.signal_mask},
                       &thread.xstate,
                       thread.rseq.address,
                       in_critical_section ? thread.rseq.critical_section_address : 0,
                       in_critical_section ? thread.rseq.abort_ip : 0,
                       status_number(thread.status, "Seccomp", 0) != 0});
  }
  return std::make_unique<Infection>(context.tree, process, task.vmas, return_paths, task.status, std::move(threads),
                                     parse_timer_ids(task.timers), task.stale_parasites, task.twin_wish,
                                     ParasiteWish{context.tracking.wants_uffd(task)}, context.deadline);
}

// A limit of processes or memory that leaves no room for a twin is no failure.
void take_twin(CaptureContext& context, CapturedTask& task, const TracedProcess& process, uint64_t region_address,
               int32_t ns_pid) {
  if (ns_pid < 0) {
    task.twin_wish = {};
    context.data.remarks.push_back("memory of pid " + std::to_string(task.host_pid) +
                                   " was copied while it stood still: it could not be forked (" + errno_name(-ns_pid) +
                                   ")");
    return;
  }
  context.reaper->tell(task.host_pid, stat_start_ticks(task.stat), ns_pid);
  task.twin = Twin::adopt(context.tree, process, ns_pid, region_address, context.deadline);
}

void collect_thread(CapturedThread& thread, const parasite::ThreadRecord& record) {
  if (record.altstack_error == 0) thread.sigaltstack = bytes_of(record.altstack);
  if (record.tid_address_error == 0) thread.tid_address = record.tid_address;
  thread.parent_death_signal = value_or_zero(record.parent_death_signal);
  thread.securebits = value_or_zero(record.securebits);
  thread.timer_slack_ns = value_or_zero(record.timer_slack_ns);
}

void collect(CaptureContext& context, CapturedTask& task, const TracedProcess& process, const Infection& infection) {
  const parasite::ProcessRecord& record = infection.process_record();
  for (uint64_t i = 0; i < parasite::kSignals; ++i) {
    task.sigactions.push_back(record.sigaction_errors[i] ? std::string(sizeof(parasite::KernelSigaction), '\0')
                                                         : bytes_of(record.sigactions[i]));
  }
  for (const parasite::KernelItimerval& timer : record.itimers) task.itimers.push_back(bytes_of(timer));
  for (uint64_t i = 0; i < parasite::kResources; ++i) {
    task.rlimits.push_back(record.rlimit_errors[i] ? std::string() : bytes_of(record.rlimits[i]));
  }
  // Only where the task could not say itself: the text costs 7 us.
  if (std::any_of(task.rlimits.begin(), task.rlimits.end(), [](const std::string& limit) { return limit.empty(); }))
    task.limits = process.proc.read_or_empty("limits");
  for (const parasite::TimerRecord& timer : infection.timers()) {
    if (timer.error) {
      context.data.notes.push_back("could not read POSIX timer " + std::to_string(timer.id) + " of pid " +
                                   std::to_string(task.host_pid));
      continue;
    }
    task.posix_timers.push_back({timer.id, bytes_of(timer.value), value_or_zero(timer.overrun)});
  }
  task.dumpable = value_or_zero(record.dumpable);
  task.child_subreaper = value_or_zero(record.child_subreaper);
  task.thp_disabled = value_or_zero(record.thp_disabled);
  task.membarrier_registrations = value_or_zero(record.membarrier_registrations);
  task.program_break = record.program_break;
  for (size_t i = 0; i < task.threads.size(); ++i) collect_thread(task.threads[i], infection.thread_record(i));
}

// Up to this many processes are infected at once: all have to be put back
// within the patience of the first.
constexpr size_t kMaximalGroup = 128;

struct Visited {
  CapturedTask* task;
  const TracedProcess* process;
  std::unique_ptr<Infection> infection;
};

void visit_group(CaptureContext& context, std::vector<Visited>& group) {
  std::vector<Infection*> infections;
  for (const Visited& visit : group) infections.push_back(visit.infection.get());
  Infection::map_all(context.tree, infections, context.deadline);
  for (const Visited& visit : group) {
    if (visit.task->twin_wish.wanted)
      context.reaper->announce(visit.task->host_pid, stat_start_ticks(visit.task->stat));
    visit.infection->start(context.deadline);
  }
  for (const Visited& visit : group) {
    const int32_t twin_ns_pid = visit.infection->await(group.size() > 1, context.deadline);
    if (context.tracking.wants_uffd(*visit.task))
      context.tracking.take_uffd(context, *visit.task, visit.infection->take_uffd());
    if (visit.task->twin_wish.wanted)
      take_twin(context, *visit.task, *visit.process, visit.infection->region_address(), twin_ns_pid);
  }
  Infection::take_out_all(context.tree, infections, context.deadline);
  for (Visited& visit : group) {
    collect(context, *visit.task, *visit.process, *visit.infection);
    if (visit.task->smaps.empty() && !visit.task->twin) capture_mappings(*visit.task, visit.process->proc);
    if (!visit.task->stale_parasites.empty()) {
      context.data.notes.push_back("removed what an interrupted checkpoint had left in pid " +
                                   std::to_string(visit.task->host_pid));
      capture_mappings(*visit.task, visit.process->proc);
    }
  }
}

}  // namespace

void find_return_paths_before_freeze(pid_t root_host_pid, ReturnPathFinder& return_paths) {
  const std::optional<ProcDir> proc = ProcDir::try_open(root_host_pid);
  if (!proc) return;  // the freeze will say so
  return_paths.find(root_host_pid, proc->read_or_empty("status"), parse_maps(proc->read_or_empty("maps")));
}

void capture_from_inside(CaptureContext& context, ReturnPathFinder& return_paths) {
  std::vector<Visited> group;
  for (size_t i = 0; i < context.data.tasks.size(); ++i) {
    CapturedTask& task = context.data.tasks[i];
    if (task.zombie) continue;
    if (task.compat) {
      context.data.notes.push_back("pid " + std::to_string(task.host_pid) + " is a 32-bit task: not asked from inside");
      continue;
    }
    context.check_abort();
    group.push_back(
        {&task, context.tree.processes()[i].get(), infect(context, task, *context.tree.processes()[i], return_paths)});
    if (group.size() < kMaximalGroup) continue;
    visit_group(context, group);
    group.clear();
  }
  if (!group.empty()) visit_group(context, group);
}

}  // namespace stasis
