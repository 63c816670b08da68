#include "trace/ptrace_calls.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "base/native_error.h"

namespace stasis {

const char* ptrace_request_name(int request) {
  switch (request) {
    case PTRACE_SEIZE: return "PTRACE_SEIZE";
    case PTRACE_INTERRUPT: return "PTRACE_INTERRUPT";
    case PTRACE_CONT: return "PTRACE_CONT";
    case PTRACE_SYSCALL: return "PTRACE_SYSCALL";
    case PTRACE_DETACH: return "PTRACE_DETACH";
    case PTRACE_SETOPTIONS: return "PTRACE_SETOPTIONS";
    case PTRACE_GETEVENTMSG: return "PTRACE_GETEVENTMSG";
    case PTRACE_GETREGS: return "PTRACE_GETREGS";
    case PTRACE_SETREGS: return "PTRACE_SETREGS";
    case PTRACE_GETREGSET: return "PTRACE_GETREGSET";
    case PTRACE_SETREGSET: return "PTRACE_SETREGSET";
    case PTRACE_GETSIGMASK: return "PTRACE_GETSIGMASK";
    case PTRACE_SETSIGMASK: return "PTRACE_SETSIGMASK";
    case PTRACE_PEEKSIGINFO: return "PTRACE_PEEKSIGINFO";
    case PTRACE_GETSIGINFO: return "PTRACE_GETSIGINFO";
    case PTRACE_SECCOMP_GET_FILTER: return "PTRACE_SECCOMP_GET_FILTER";
    case PTRACE_SECCOMP_GET_METADATA: return "PTRACE_SECCOMP_GET_METADATA";
    case kPtraceGetRseqConfiguration: return "PTRACE_GET_RSEQ_CONFIGURATION";
    default: return "ptrace";
  }
}

// The raw call: libc's ptrace() reinterprets results of the PEEK requests.
int try_ptrace(int request, pid_t host_tid, uint64_t address, uint64_t data, int64_t* result) {
  const long value = ::syscall(SYS_ptrace, request, host_tid, address, data);
  if (value < 0) return errno;
  if (result) *result = value;
  return 0;
}

int64_t checked_ptrace(int request, pid_t host_tid, uint64_t address, uint64_t data) {
  int64_t value = 0;
  if (const int error = try_ptrace(request, host_tid, address, data, &value)) {
    throw NativeError::from_errno(ptrace_request_name(request), error).with_pid(host_tid);
  }
  return value;
}

}  // namespace stasis
