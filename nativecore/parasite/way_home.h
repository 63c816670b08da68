// How a stopped thread comes home from remote system calls if we die in the
// middle of one: a frame below its stack, from which rt_sigreturn restores it.
//
// Undo: leave(), or the destructor: the bytes below the stack are put back.
// If we die here: nobody reads below the red zone; the frame is garbage there.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "trace/frozen_tree.h"
#include "trace/remote_syscall.h"
#include "trace/return_path.h"

namespace stasis {

class WayHome {
 public:
  // Without a C library, on a foreign stack or under a shadow stack there is no
  // way home; calls are made all the same, from the vdso.
  WayHome(const TracedProcess& process, const std::vector<Vma>& vmas, ReturnPathFinder& return_paths,
          std::string_view status, const InterruptedContext& context, const std::string& xstate,
          uint64_t rseq_abort_ip);
  WayHome(const WayHome&) = delete;
  WayHome& operator=(const WayHome&) = delete;
  ~WayHome() { leave(); }

  const CallSite& site() const { return site_; }
  // The thread has gone home by itself: the frame tells of an old context.
  void forget_frame() { site_.stack_pointer = 0; }
  void leave() noexcept;

 private:
  bool prepare(const std::vector<Vma>& vmas, ReturnPathFinder& return_paths, std::string_view status,
               const InterruptedContext& context, const std::string& xstate, uint64_t rseq_abort_ip);
  const TracedProcess& process_;
  CallSite site_;
  uint64_t frame_address_ = 0;  // 0 if there is no frame
  std::string below_stack_;     // what was there before
};

}  // namespace stasis
