// What ptrace tells of one stopped thread: bytes as the kernel gives them.
// Reading changes nothing in the target.
#pragma once

#include <sys/types.h>
#include <sys/user.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "proc/proc_dir.h"

namespace stasis {

user_regs_struct read_registers(pid_t host_tid);
std::string read_xstate(pid_t host_tid);    // NT_X86_XSTATE
uint64_t read_signal_mask(pid_t host_tid);  // the saved mask, if a system call has exchanged it for its duration
// siginfo_t of each queued signal, oldest first.
std::vector<std::string> read_pending_signals(pid_t host_tid, bool shared);

struct RseqState {
  uint64_t address = 0;
  uint32_t size_bytes = 0;
  uint32_t signature = 0;
  uint32_t flags = 0;
  uint64_t critical_section_address = 0;  // rseq_cs of the registered area
  std::string critical_section;           // struct rseq_cs, if the thread was inside one
  uint64_t abort_ip = 0;                  // of it
};
RseqState read_rseq(pid_t host_tid, pid_t host_pid, uint64_t instruction_pointer);
// For a thread that was inside a critical section and has been elsewhere: the
// kernel cleared the pointer when it saw that. With it back, and the thread
// inside again, the kernel aborts the section as it would have done.
void put_back_critical_section(const ProcDir& proc, uint64_t rseq_address, uint64_t critical_section_address);

struct SeccompProgram {
  std::string instructions;  // struct sock_filter[]
  uint64_t flags = 0;
};
// Oldest first: PTRACE_SECCOMP_GET_FILTER counts from the first installed.
std::vector<SeccompProgram> read_seccomp_filters(pid_t host_tid);

// x86-64 code segment of 64-bit user code; a thread with another is 32-bit.
constexpr uint64_t kUserCodeSegment64 = 0x33;

}  // namespace stasis
