#include "trace/remote_syscall.h"

#include <signal.h>
#include <sys/wait.h>

#include <string_view>

#include "base/fault_point.h"
#include "base/log_ring.h"
#include "base/native_error.h"
#include "base/sys.h"
#include "trace/ptrace_calls.h"
#include "trace/thread_state.h"

namespace stasis {
namespace {

// Direction, trap, alignment check and nested task clear; interrupts on, bit 1 is always one.
constexpr uint64_t kPlainFlags = 0x202;

// Puts the context back on every way out; a failure while doing so is logged,
// because the first error is the one that matters.
class ContextRestorer {
 public:
  ContextRestorer(pid_t host_tid, const InterruptedContext& context) : host_tid_(host_tid), context_(context) {}
  ~ContextRestorer() {
    try {
      restore_interrupted_context(host_tid_, context_);
    } catch (const NativeError& error) {
      log_line("remote system call: %s", error.what());
    }
  }

 private:
  pid_t host_tid_;
  const InterruptedContext& context_;
};

bool is_syscall_stop(int status) { return WSTOPSIG(status) == (SIGTRAP | 0x80); }

}  // namespace

uint64_t find_syscall_instruction(const TracedProcess& process, const std::vector<Vma>& vmas) {
  for (const Vma& vma : vmas) {
    if (vma.name != "[vdso]") continue;
    std::string code(vma.end - vma.start, '\0');
    const sys::Try<size_t> read = sys::try_process_vm_read(process.host_pid, code.data(), vma.start, code.size());
    if (!read.ok())
      throw NativeError::from_errno("process_vm_readv", read.error).with_pid(process.host_pid).with_address(vma.start);
    const size_t at = std::string_view(code).substr(0, read.value).find("\x0f\x05");
    if (at != std::string_view::npos) return vma.start + at;
  }
  throw NativeError("unsupported", "the process has no vdso to start a system call from").with_pid(process.host_pid);
}

InterruptedContext read_interrupted_context(pid_t host_tid) {
  return {read_registers(host_tid), read_signal_mask(host_tid)};
}

void restore_interrupted_context(pid_t host_tid, const InterruptedContext& context) {
  uint64_t mask = context.signal_mask;
  checked_ptrace(PTRACE_SETSIGMASK, host_tid, sizeof mask, reinterpret_cast<uint64_t>(&mask));
  user_regs_struct registers = context.registers;
  checked_ptrace(PTRACE_SETREGS, host_tid, 0, reinterpret_cast<uint64_t>(&registers));
}

int64_t run_remote_syscall(FrozenTree& tree, TracedThread& thread, const InterruptedContext& context,
                           const CallSite& site, uint64_t number, const std::array<uint64_t, 6>& arguments,
                           const Deadline& deadline) {
  STASIS_CONTEXT("running a system call in the target", thread.host_tid);
  const pid_t host_tid = thread.host_tid;
  user_regs_struct registers = context.registers;
  registers.rip = site.syscall_instruction;
  if (site.stack_pointer) registers.rsp = site.stack_pointer;
  registers.rax = number;
  registers.orig_rax = UINT64_MAX;  // not in a system call: nothing to restart
  registers.rdi = arguments[0];
  registers.rsi = arguments[1];
  registers.rdx = arguments[2];
  registers.r10 = arguments[3];
  registers.r8 = arguments[4];
  registers.r9 = arguments[5];
  registers.eflags = kPlainFlags;
  uint64_t mask = kAllSignals;

  const ContextRestorer restorer(host_tid, context);
  checked_ptrace(PTRACE_SETREGS, host_tid, 0, reinterpret_cast<uint64_t>(&registers));
  fault_point("remote_call_registers_set");
  // Everything blocked, or a queued signal's handler would run on top of the call.
  checked_ptrace(PTRACE_SETSIGMASK, host_tid, sizeof mask, reinterpret_cast<uint64_t>(&mask));
  // PTRACE_SINGLESTEP would take one stop less, but its SIGTRAP resets the
  // target's SIGTRAP disposition when that is blocked or ignored.
  for (int syscall_stops = 0; syscall_stops < 2;) {
    checked_ptrace(PTRACE_SYSCALL, host_tid, 0, 0);
    const int status = tree.wait_for_stop(thread, deadline);
    if (is_syscall_stop(status)) {
      if (++syscall_stops == 1) fault_point("remote_call_entered");
    } else if (status >> 16 == 0 && WSTOPSIG(status) == SIGSTOP) {
      thread.deferred_signal = SIGSTOP;
    }
  }
  fault_point("remote_call_done");
  return static_cast<int64_t>(read_registers(host_tid).rax);
}

}  // namespace stasis
