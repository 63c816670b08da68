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

struct SelfReturnFrame {
  uint64_t stack_pointer = 0;     // for rt_sigreturn, in the target
  uint64_t altstack_address = 0;  // of the frame's uc_stack, in the target
};

// Writes the frame to `own`, which is mapped in the target at `target_address`.
// An interrupted system call starts again from the beginning: sigreturn forgets
// the restart block, and EINTR without a signal would be our doing.
// rseq_abort_ip: where a thread goes on that was inside an rseq critical section, else 0.
SelfReturnFrame write_self_return_frame(unsigned char* own, uint64_t target_address, const InterruptedContext& context,
                                        const std::string& xstate, uint64_t rseq_abort_ip);

}  // namespace stasis
