#include "parasite/way_home.h"

#include <algorithm>
#include <utility>

#include "base/page.h"
#include "base/sys.h"
#include "parasite/self_return_frame.h"

namespace stasis {
namespace {

constexpr uint64_t kRedZoneBytes = 128;  // System V ABI: below the stack pointer, in use

}  // namespace

// The memory below the stack pointer is free for signal frames at any moment, as
// long as it belongs to the stack that the kernel made: a coroutine's stack may
// end right there.
WayHome::WayHome(const TracedProcess& process, const std::vector<Vma>& vmas, ReturnPathFinder& return_paths,
                 std::string_view status, const InterruptedContext& context, const std::string& xstate,
                 uint64_t rseq_abort_ip)
    : process_(process) {
  if (!prepare(vmas, return_paths, status, context, xstate, rseq_abort_ip))
    site_.syscall_instruction = find_syscall_instruction(process, vmas);
}

bool WayHome::prepare(const std::vector<Vma>& vmas, ReturnPathFinder& return_paths, std::string_view status,
                      const InterruptedContext& context, const std::string& xstate, uint64_t rseq_abort_ip) {
  const uint64_t stack_pointer = context.registers.rsp;
  const auto stack = std::find_if(vmas.begin(), vmas.end(), [](const Vma& vma) { return vma.name == "[stack]"; });
  if (stack == vmas.end() || stack_pointer < stack->start || stack_pointer >= stack->end) return false;
  const uint64_t length = self_return_frame_bytes(xstate.size());
  const uint64_t below = stack->start + length + kRedZoneBytes + kPageBytes;
  if (stack_pointer < below) return false;
  const std::optional<ReturnPath> path = return_paths.find(process_.host_pid, status, vmas);
  if (!path) return false;

  const uint64_t address = (stack_pointer - kRedZoneBytes - length) / 64 * 64;
  below_stack_.resize(length);
  const sys::Try<size_t> read = sys::try_process_vm_read(process_.host_pid, below_stack_.data(), address, length);
  if (!read.ok() || read.value != length) return false;
  std::vector<unsigned char> frame(length);
  write_self_return_frame(frame.data(), address, context, xstate, rseq_abort_ip, path->sigreturn_address);
  frame_address_ = address;
  const sys::Try<size_t> written = sys::try_process_vm_write(process_.host_pid, frame.data(), address, length);
  if (!written.ok() || written.value != length) {
    leave();
    return false;
  }
  site_ = {path->syscall_instruction, address - path->popped_words * sizeof(uint64_t)};
  return true;
}

void WayHome::leave() noexcept {
  const uint64_t address = std::exchange(frame_address_, 0);
  if (!address) return;
  sys::try_process_vm_write(process_.host_pid, below_stack_.data(), address, below_stack_.size());
}

}  // namespace stasis
