// ptrace(2) requests, thin. ESRCH is what ptrace says both of a task that has
// gone and of one that is not stopped; callers know which it can be.
// All requests for a task come from the thread that seized it.
#pragma once

#include <sys/ptrace.h>
#include <sys/types.h>

#include <cstdint>

namespace stasis {

// Requests that the C library's headers of our oldest supported system lack.
constexpr int kPtraceGetRseqConfiguration = 0x420f;  // Linux 5.13
constexpr uint64_t kPtraceOptionSuspendSeccomp = 1u << 21;

// What every tracee of ours is seized with. Children of seized tasks are then
// attached by the kernel, so only tasks that are not seized yet can add unknown
// ones and a scan of the tree ends. TRACEEXEC because an exec removes threads
// without a word otherwise.
constexpr uint64_t kSeizeOptions =
    PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC;

// Throws "task_gone" on ESRCH, NativeError with the request's name otherwise.
int64_t checked_ptrace(int request, pid_t host_tid, uint64_t address, uint64_t data);
// The errno, 0 if it worked; `result` gets the call's value.
int try_ptrace(int request, pid_t host_tid, uint64_t address, uint64_t data, int64_t* result = nullptr);

const char* ptrace_request_name(int request);

}  // namespace stasis
