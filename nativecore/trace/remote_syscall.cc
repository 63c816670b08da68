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

constexpr uint64_t kPutBackPatienceMs = 1000;

// Stops the threads and puts their contexts back on every way out; a failure while
// doing so is logged, because the first error is the one that matters.
class ContextRestorer {
 public:
  ContextRestorer(FrozenTree& tree, const std::vector<RemoteCall*>& calls) : tree_(tree), calls_(calls) {}
  ~ContextRestorer() {
    for (size_t i = 0; i < begun_; ++i) {
      const RemoteCall& call = *calls_[i];
      try {
        if (running(i)) tree_.interrupt({call.thread}, Deadline::in_ms(kPutBackPatienceMs));
        restore_interrupted_context(call.thread->host_tid, *call.context);
      } catch (const NativeError& error) {
        log_line("remote system call: %s", error.what());
      }
    }
  }
  void begin() { ++begun_; }
  void let_run(size_t index) {
    running_.resize(calls_.size());
    running_[index] = true;
  }
  void has_stopped(size_t index) { running_[index] = false; }

 private:
  bool running(size_t index) const { return index < running_.size() && running_[index]; }
  FrozenTree& tree_;
  const std::vector<RemoteCall*>& calls_;
  size_t begun_ = 0;
  std::vector<bool> running_;
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

void run_remote_syscalls(FrozenTree& tree, const std::vector<RemoteCall*>& calls, const Deadline& deadline) {
  ContextRestorer restorer(tree, calls);
  const auto let_run = [&](size_t index) {
    // PTRACE_SINGLESTEP would take one stop less, but its SIGTRAP resets the
    // target's SIGTRAP disposition when that is blocked or ignored.
    checked_ptrace(PTRACE_SYSCALL, calls[index]->thread->host_tid, 0, 0);
    restorer.let_run(index);
  };
  for (size_t i = 0; i < calls.size(); ++i) {
    const RemoteCall& call = *calls[i];
    const pid_t host_tid = call.thread->host_tid;
    STASIS_CONTEXT("running a system call in the target", host_tid);
    user_regs_struct registers = call.context->registers;
    registers.rip = call.site.syscall_instruction;
    if (call.site.stack_pointer) registers.rsp = call.site.stack_pointer;
    registers.rax = call.number;
    registers.orig_rax = UINT64_MAX;  // not in a system call: nothing to restart
    registers.rdi = call.arguments[0];
    registers.rsi = call.arguments[1];
    registers.rdx = call.arguments[2];
    registers.r10 = call.arguments[3];
    registers.r8 = call.arguments[4];
    registers.r9 = call.arguments[5];
    registers.eflags = kPlainFlags;
    uint64_t mask = kAllSignals;
    restorer.begin();
    checked_ptrace(PTRACE_SETREGS, host_tid, 0, reinterpret_cast<uint64_t>(&registers));
    fault_point("remote_call_registers_set");
    // Everything blocked, or a queued signal's handler would run on top of the call.
    checked_ptrace(PTRACE_SETSIGMASK, host_tid, sizeof mask, reinterpret_cast<uint64_t>(&mask));
    let_run(i);
  }
  const FrozenTree::WaitScope waiting(tree);
  // Entry, then exit: while one is awaited, the others go on.
  for (int stop = 1; stop <= 2; ++stop) {
    for (size_t i = 0; i < calls.size(); ++i) {
      TracedThread& thread = *calls[i]->thread;
      STASIS_CONTEXT("running a system call in the target", thread.host_tid);
      for (;;) {
        const int status = tree.wait_for_stop(thread, deadline);
        restorer.has_stopped(i);
        if (is_syscall_stop(status)) break;
        if (status >> 16 == 0 && WSTOPSIG(status) == SIGSTOP) thread.deferred_signal = SIGSTOP;
        let_run(i);
      }
      if (stop == 2) continue;
      fault_point("remote_call_entered");
      let_run(i);
    }
  }
  fault_point("remote_call_done");
  for (RemoteCall* call : calls) call->result = static_cast<int64_t>(read_registers(call->thread->host_tid).rax);
}

int64_t run_remote_syscall(FrozenTree& tree, TracedThread& thread, const InterruptedContext& context,
                           const CallSite& site, uint64_t number, const std::array<uint64_t, 6>& arguments,
                           const Deadline& deadline) {
  RemoteCall call{&thread, &context, site, number, arguments, 0};
  run_remote_syscalls(tree, {&call}, deadline);
  return call.result;
}

}  // namespace stasis
