#include "executor/parked_threads.h"

#include <elf.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>

#include "base/fault_point.h"
#include "base/sys.h"
#include "executor/validate_plan.h"
#include "proc/proc_dir.h"
#include "trace/ptrace_calls.h"

namespace stasis {
namespace {

constexpr uint64_t kUserCodeSegment = 0x33;     // 64-bit user code, __USER_CS
constexpr uint64_t kUserStackSegment = 0x2b;    // __USER_DS
constexpr uint64_t kPlainFlags = 0x202;         // interrupts on; bit 1 is always one
constexpr uint64_t kNotInSyscall = UINT64_MAX;  // orig_rax: nothing to restart
constexpr size_t kMaximalVdsoBytes = 4 * kPageBytes;
constexpr size_t kMaximalXstateBytes = 65536;
constexpr int kSyscallStop = SIGTRAP | 0x80;

bool is_event_stop(int status) { return status >> 16 == PTRACE_EVENT_STOP; }

user_regs_struct planned_registers(const PlanTask& task) {
  user_regs_struct registers;
  std::memcpy(&registers, task.release.registers.data(), sizeof registers);
  return registers;
}

// The kernel takes nothing but its own size (xstateregs_set). What a plan from
// a smaller machine lacks is in initial state, which zeroes say.
size_t kernel_xstate_bytes(pid_t host_tid) {
  std::string buffer(kMaximalXstateBytes, '\0');
  iovec area{buffer.data(), buffer.size()};
  checked_ptrace(PTRACE_GETREGSET, host_tid, NT_X86_XSTATE, reinterpret_cast<uint64_t>(&area));
  return area.iov_len;
}

void set_xstate(pid_t host_tid, std::string_view xstate, size_t kernel_bytes) {
  std::string padded(xstate);
  if (padded.size() > kernel_bytes) {
    // XSTATE_BV, offset 512, says what is in use: beyond our size nothing may be.
    if (padded.find_first_not_of('\0', kernel_bytes) != std::string::npos) {
      throw NativeError("unsupported", "the extended state is larger than this machine's").with_pid(host_tid);
    }
  }
  padded.resize(kernel_bytes, '\0');
  iovec area{padded.data(), padded.size()};
  checked_ptrace(PTRACE_SETREGSET, host_tid, NT_X86_XSTATE, reinterpret_cast<uint64_t>(&area));
}

std::string_view readable_part(std::string& buffer, pid_t host_pid, uint64_t address) {
  const auto read = sys::try_process_vm_read(host_pid, buffer.data(), address, buffer.size());
  return std::string_view(buffer).substr(0, read.ok() ? read.value : 0);
}

}  // namespace

void ParkedThreads::seize() {
  uint64_t options = PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD | kPtraceOptionSuspendSeccomp;
  for (uint32_t index = 0; index < plan_.tasks.size(); ++index) {
    if (!plan_.tasks[index].stays()) continue;
    STASIS_CONTEXT("seizing a parked thread", tree_.host_pid(index));
    int error = try_ptrace(PTRACE_SEIZE, tree_.host_pid(index), 0, options);
    // We may be under a seccomp filter ourselves, which forbids suspending others.
    if ((error == EPERM || error == EINVAL) && (options & kPtraceOptionSuspendSeccomp) && !has_seccomp_steps(plan_)) {
      options &= ~kPtraceOptionSuspendSeccomp;
      error = try_ptrace(PTRACE_SEIZE, tree_.host_pid(index), 0, options);
    }
    if (error) throw NativeError::from_errno("PTRACE_SEIZE", error).with_pid(tree_.host_pid(index));
    tasks_.push_back(index);
    if (plan_.tasks[index].kind == TaskKind::process) processes_.push_back(index);
  }
}

int ParkedThreads::await_stop(uint32_t task) const {
  int status = 0;
  const auto waited = sys::try_waitpid(tree_.host_pid(task), &status, 0);
  if (!waited.ok()) throw NativeError::from_errno("waitpid", waited.error).with_pid(tree_.host_pid(task));
  if (!WIFSTOPPED(status)) throw NativeError("task_gone", "a parked thread died").with_pid(tree_.host_pid(task));
  return status;
}

void ParkedThreads::await_event_stop(uint32_t task) {
  for (;;) {
    const int status = await_stop(task);
    if (is_event_stop(status)) return;
    // All signals are blocked, so this can only be SIGSTOP from somebody outside; it gets it back at the end.
    if (status >> 16 == 0 && WSTOPSIG(status) == SIGSTOP) deferred_stops_.push_back(task);
    checked_ptrace(PTRACE_CONT, tree_.host_pid(task), 0, 0);
  }
}

void ParkedThreads::stop() {
  for (const uint32_t task : tasks_) checked_ptrace(PTRACE_INTERRUPT, tree_.host_pid(task), 0, 0);
  for (const uint32_t task : tasks_) {
    STASIS_CONTEXT("stopping a parked thread", tree_.host_pid(task));
    await_event_stop(task);
  }
}

uint64_t ParkedThreads::find_syscall_instruction(uint32_t task) const {
  const pid_t host_pid = tree_.host_pid(task);
  const ProcDir proc = ProcDir::open(host_pid);
  const std::string_view instruction("\x0f\x05", 2);
  std::string code(kMaximalVdsoBytes, '\0');

  // The auxiliary vector knows the vdso; the list of mappings, which may be long, is read only without it.
  const std::string auxv = proc.read_or_empty("auxv");
  for (size_t at = 0; at + 16 <= auxv.size(); at += 16) {
    uint64_t pair[2];
    std::memcpy(pair, auxv.data() + at, sizeof pair);
    if (pair[0] != AT_SYSINFO_EHDR) continue;
    const std::string_view vdso = readable_part(code, host_pid, pair[1]);
    if (!vdso.starts_with(ELFMAG)) continue;
    if (const size_t found = vdso.find(instruction); found != std::string_view::npos) return pair[1] + found;
  }
  std::vector<Vma> mappings = parse_maps(proc.read("maps"));
  std::stable_partition(mappings.begin(), mappings.end(), [](const Vma& vma) { return vma.name == "[vdso]"; });
  for (const Vma& vma : mappings) {
    if (!vma.executable || vma.name == "[vsyscall]" ||
        (vma.start >= hole_.address() && vma.start < hole_.address() + hole_.length_bytes()))
      continue;
    code.resize(std::min<uint64_t>(vma.end - vma.start, 1u << 20));
    const std::string_view text = readable_part(code, host_pid, vma.start);
    if (const size_t found = text.find(instruction); found != std::string_view::npos) return vma.start + found;
  }
  throw NativeError("unsupported", "the task has no syscall instruction outside the hole").with_pid(host_pid);
}

void ParkedThreads::unmap_hole() {
  // All processes at once: each stop is a round through the scheduler.
  for (const uint32_t task : processes_) {
    STASIS_CONTEXT("unmapping the hole", tree_.host_pid(task));
    user_regs_struct registers = planned_registers(plan_.tasks[task]);
    registers.rip = find_syscall_instruction(task);
    registers.rax = SYS_munmap;
    registers.orig_rax = kNotInSyscall;
    registers.rdi = hole_.address();
    registers.rsi = hole_.length_bytes();
    registers.cs = kUserCodeSegment;
    registers.ss = kUserStackSegment;
    registers.eflags = kPlainFlags;
    checked_ptrace(PTRACE_SETREGS, tree_.host_pid(task), 0, reinterpret_cast<uint64_t>(&registers));
    checked_ptrace(PTRACE_SYSCALL, tree_.host_pid(task), 0, 0);
  }
  for (const uint32_t task : processes_) {
    const pid_t host_pid = tree_.host_pid(task);
    STASIS_CONTEXT("unmapping the hole", host_pid);
    const int status = await_stop(task);
    if (WSTOPSIG(status) != kSyscallStop) {
      throw NativeError("conflict",
                        "a parked thread stopped for signal " + std::to_string(WSTOPSIG(status)) + " instead of munmap")
          .with_pid(host_pid);
    }
    // At the entry of munmap. Interrupted here, it stops again on the way out, in the
    // same kind of stop as the other threads: there the kernel treats orig_rax as it
    // would after any signal, which a stop at the exit of a system call would not.
    checked_ptrace(PTRACE_INTERRUPT, host_pid, 0, 0);
    checked_ptrace(PTRACE_CONT, host_pid, 0, 0);
  }
  for (const uint32_t task : processes_) {
    const pid_t host_pid = tree_.host_pid(task);
    STASIS_CONTEXT("unmapping the hole", host_pid);
    await_event_stop(task);
    user_regs_struct registers;
    checked_ptrace(PTRACE_GETREGS, host_pid, 0, reinterpret_cast<uint64_t>(&registers));
    const int64_t result = static_cast<int64_t>(registers.rax);
    if (result != 0)
      throw NativeError::from_errno("munmap", static_cast<int>(-result))
          .with_pid(host_pid)
          .with_address(hole_.address());
  }
}

void ParkedThreads::set_registers() {
  const size_t xstate_bytes = kernel_xstate_bytes(tree_.host_pid(tasks_.front()));
  for (const uint32_t index : tasks_) {
    const pid_t host_tid = tree_.host_pid(index);
    const PlanRelease& release = plan_.tasks[index].release;
    STASIS_CONTEXT("setting registers", host_tid);
    uint64_t mask = release.signal_mask;
    checked_ptrace(PTRACE_SETSIGMASK, host_tid, sizeof mask, reinterpret_cast<uint64_t>(&mask));
    if (!release.xstate.empty()) set_xstate(host_tid, release.xstate, xstate_bytes);
    user_regs_struct registers = planned_registers(plan_.tasks[index]);
    checked_ptrace(PTRACE_SETREGS, host_tid, 0, reinterpret_cast<uint64_t>(&registers));
  }
}

void ParkedThreads::detach() {
  // Before the first thread of the process runs: it meets the signal on its way
  // out of the stop, and the group stop takes all others before their first instruction.
  const auto send_stop = [this](uint32_t task) {
    const uint32_t process = plan_.tasks[task].kind == TaskKind::thread ? plan_.tasks[task].parent : task;
    const auto sent = sys::try_pidfd_send_signal(tree_.pidfd(process), SIGSTOP);
    if (!sent.ok()) throw NativeError::from_errno("pidfd_send_signal", sent.error).with_pid(tree_.host_pid(process));
  };
  for (const uint32_t process : processes_) {
    if (plan_.tasks[process].stopped) send_stop(process);
  }
  for (const uint32_t task : deferred_stops_) send_stop(task);
  for (const uint32_t task : tasks_) {
    fault_point(task == tasks_.front() ? "detach_first" : "detach_next");
    if (task == tasks_.back()) fault_point("detach_last");
    checked_ptrace(PTRACE_DETACH, tree_.host_pid(task), 0, 0);
  }
}

}  // namespace stasis
