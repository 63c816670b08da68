// The frame from which the parasite's rt_sigreturn restores the interrupted
// context when nobody is left to do it with ptrace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "trace/remote_syscall.h"

namespace stasis {

// Asks the processor what frames need to know; before the freeze, because that is slow.
void prepare_self_return_frames();

// Room for the frame with this much xstate, alignment included.
size_t self_return_frame_bytes(size_t xstate_length_bytes);

// Writes the frame to `own`, which is mapped in the target at `target_address`.
// An interrupted system call starts again from the beginning: sigreturn forgets
// the restart block, and EINTR without a signal would be our doing.
// rseq_abort_ip: where a thread goes on that was inside an rseq critical section, else 0.
// return_address: of code that calls rt_sigreturn, for a thread that comes to the
// frame by a `ret` with the stack pointer at its start; 0 where that is not used.
// Gives the stack pointer with which rt_sigreturn finds the frame.
uint64_t write_self_return_frame(unsigned char* own, uint64_t target_address, const InterruptedContext& context,
                                 const std::string& xstate, uint64_t rseq_abort_ip, uint64_t return_address = 0);

}  // namespace stasis
