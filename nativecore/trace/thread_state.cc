#include "trace/thread_state.h"

#include <elf.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstring>

#include "base/native_error.h"
#include "base/sys.h"
#include "trace/ptrace_calls.h"

namespace stasis {
namespace {

// With AMX tile data the standard format is 11,008 bytes; room for what comes.
constexpr size_t kMaximalXstateBytes = 32768;

// struct rseq of the ABI: cpu_id_start, cpu_id, rseq_cs.
constexpr uint64_t kRseqCriticalSectionOffset = 8;

struct RseqCriticalSection {
  uint32_t version;
  uint32_t flags;
  uint64_t start_ip;
  uint64_t post_commit_offset;
  uint64_t abort_ip;
};
static_assert(sizeof(RseqCriticalSection) == 32);

uint64_t as_argument(void* pointer) { return reinterpret_cast<uint64_t>(pointer); }

}  // namespace

user_regs_struct read_registers(pid_t host_tid) {
  user_regs_struct registers;
  checked_ptrace(PTRACE_GETREGS, host_tid, 0, as_argument(&registers));
  return registers;
}

std::string read_xstate(pid_t host_tid) {
  alignas(64) char state[kMaximalXstateBytes];
  iovec window{state, sizeof state};
  checked_ptrace(PTRACE_GETREGSET, host_tid, NT_X86_XSTATE, as_argument(&window));
  return std::string(state, window.iov_len);
}

uint64_t read_signal_mask(pid_t host_tid) {
  uint64_t mask = 0;
  checked_ptrace(PTRACE_GETSIGMASK, host_tid, sizeof mask, as_argument(&mask));
  return mask;
}

std::vector<std::string> read_pending_signals(pid_t host_tid, bool shared) {
  static_assert(sizeof(siginfo_t) == 128);
  std::vector<std::string> found;
  for (;;) {
    siginfo_t batch[32];
    __ptrace_peeksiginfo_args arguments{};
    arguments.off = found.size();
    arguments.flags = shared ? PTRACE_PEEKSIGINFO_SHARED : 0;
    arguments.nr = 32;
    const int64_t count = checked_ptrace(PTRACE_PEEKSIGINFO, host_tid, as_argument(&arguments), as_argument(batch));
    for (int64_t i = 0; i < count; ++i) found.emplace_back(reinterpret_cast<const char*>(&batch[i]), sizeof batch[i]);
    if (count < arguments.nr) return found;
  }
}

RseqState read_rseq(pid_t host_tid, pid_t host_pid, uint64_t instruction_pointer) {
  RseqState state;
  struct {
    uint64_t address;
    uint32_t size_bytes;
    uint32_t signature;
    uint32_t flags;
    uint32_t padding;
  } configuration{};
  // EINVAL, EIO: a kernel without the request or without rseq.
  if (try_ptrace(kPtraceGetRseqConfiguration, host_tid, sizeof configuration, as_argument(&configuration)) != 0)
    return state;
  state.address = configuration.address;
  state.size_bytes = configuration.size_bytes;
  state.signature = configuration.signature;
  state.flags = configuration.flags;
  if (!state.address) return state;
  const sys::Try<size_t> read = sys::try_process_vm_read(host_pid, &state.critical_section_address,
                                                         state.address + kRseqCriticalSectionOffset, sizeof(uint64_t));
  if (!read.ok() || !state.critical_section_address) return state;
  RseqCriticalSection section{};
  const sys::Try<size_t> described =
      sys::try_process_vm_read(host_pid, &section, state.critical_section_address, sizeof section);
  // The pointer is cleared lazily: it may be left over from a section that was passed.
  if (described.ok() && described.value == sizeof section &&
      instruction_pointer - section.start_ip < section.post_commit_offset) {
    state.critical_section.assign(reinterpret_cast<const char*>(&section), sizeof section);
    state.abort_ip = section.abort_ip;
  }
  return state;
}

void put_back_critical_section(const ProcDir& proc, uint64_t rseq_address, uint64_t critical_section_address) {
  const sys::Try<UniqueFd> memory = sys::try_openat(proc.borrow(), "mem", O_RDWR);
  if (memory.ok())
    sys::try_pwrite(memory.value.borrow(), &critical_section_address, sizeof critical_section_address,
                    rseq_address + kRseqCriticalSectionOffset);
}

std::vector<SeccompProgram> read_seccomp_filters(pid_t host_tid) {
  constexpr size_t kInstructionBytes = 8;  // struct sock_filter
  std::vector<SeccompProgram> programs;
  for (uint64_t index = 0;; ++index) {
    int64_t count = 0;
    const int error = try_ptrace(PTRACE_SECCOMP_GET_FILTER, host_tid, index, 0, &count);
    if (error == ENOENT) return programs;
    if (error) throw NativeError::from_errno("PTRACE_SECCOMP_GET_FILTER", error).with_pid(host_tid);
    SeccompProgram program;
    program.instructions.resize(static_cast<size_t>(count) * kInstructionBytes);
    checked_ptrace(PTRACE_SECCOMP_GET_FILTER, host_tid, index, as_argument(program.instructions.data()));
    struct {
      uint64_t filter_index;
      uint64_t flags;
    } metadata{index, 0};
    if (try_ptrace(PTRACE_SECCOMP_GET_METADATA, host_tid, sizeof metadata, as_argument(&metadata)) == 0) {
      program.flags = metadata.flags;
    }
    programs.push_back(std::move(program));
  }
}

}  // namespace stasis
