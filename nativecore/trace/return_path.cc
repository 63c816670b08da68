#include "trace/return_path.h"

#include <sys/uio.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <string_view>

#include "base/sys.h"

namespace stasis {
namespace {

using namespace std::string_view_literals;

struct Pattern {
  std::string_view code;
  uint64_t popped_words;
};

constexpr Pattern kSyscallThenReturn[] = {
    {"\x0f\x05\xc3"sv, 0},      // syscall; ret
    {"\x0f\x05\x5d\xc3"sv, 1},  // syscall; pop %rbp; ret
};
constexpr std::string_view kSigreturn[] = {
    "\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05"sv,  // mov $15,%rax; syscall
    "\xb8\x0f\x00\x00\x00\x0f\x05"sv,          // mov $15,%eax; syscall
};

// More text than this in one mapping is not searched: libraries have it early.
constexpr uint64_t kMaximalSearchBytes = 16 << 20;
constexpr uint64_t kChunkBytes = 256 << 10;
constexpr uint64_t kOverlapBytes = 16;

}  // namespace

ReturnPathFinder::Offsets ReturnPathFinder::search(pid_t host_pid, const Vma& vma) {
  Offsets found;
  const uint64_t length = std::min(vma.end - vma.start, kMaximalSearchBytes);
  std::string chunk(kChunkBytes + kOverlapBytes, '\0');
  for (uint64_t at = 0; at < length && !(found.syscall_offset && found.sigreturn_offset); at += kChunkBytes) {
    const uint64_t wanted = std::min<uint64_t>(chunk.size(), length - at);
    const sys::Try<size_t> read = sys::try_process_vm_read(host_pid, chunk.data(), vma.start + at, wanted);
    if (!read.ok()) break;
    const std::string_view code(chunk.data(), read.value);
    for (const Pattern& pattern : kSyscallThenReturn) {
      if (found.syscall_offset) break;
      const size_t position = code.find(pattern.code);
      if (position == std::string_view::npos) continue;
      found.syscall_offset = at + position;
      found.popped_words = pattern.popped_words;
    }
    for (const std::string_view pattern : kSigreturn) {
      if (found.sigreturn_offset) break;
      const size_t position = code.find(pattern);
      if (position != std::string_view::npos) found.sigreturn_offset = at + position;
    }
  }
  return found;
}

// A file may have been changed since it was searched.
bool ReturnPathFinder::still_there(pid_t host_pid, const ReturnPath& path) {
  for (const Pattern& pattern : kSyscallThenReturn) {
    if (pattern.popped_words != path.popped_words) continue;
    for (const std::string_view sigreturn : kSigreturn) {
      char code[32];
      const size_t length = pattern.code.size() + sigreturn.size();
      const iovec local{code, length};
      const iovec remote[] = {{reinterpret_cast<void*>(path.syscall_instruction), pattern.code.size()},
                              {reinterpret_cast<void*>(path.sigreturn_address), sigreturn.size()}};
      const sys::Try<size_t> read = sys::try_process_vm_readv(host_pid, &local, 1, remote, std::size(remote));
      const std::string_view found(code, read.ok() ? read.value : 0);
      if (found.size() == length && found.starts_with(pattern.code) && found.ends_with(sigreturn)) return true;
    }
  }
  return false;
}

std::optional<ReturnPath> ReturnPathFinder::find(pid_t host_pid, std::string_view status,
                                                 const std::vector<Vma>& vmas) {
  // With a shadow stack, a return to an address that was not called faults.
  if (status_field(status, "x86_Thread_features").find("shstk") != std::string_view::npos) return std::nullopt;
  ReturnPath path;
  for (const Vma& vma : vmas) {
    if (!vma.executable || !vma.readable || vma.name == "[vsyscall]") continue;
    // Anonymous code (a just-in-time compiler's) changes and is not remembered.
    if (vma.inode == 0 && vma.name != "[vdso]") continue;
    const auto [entry, is_new] = known_.try_emplace({vma.device, vma.inode, vma.offset, vma.end - vma.start});
    if (is_new) entry->second = search(host_pid, vma);
    const Offsets& offsets = entry->second;
    if (!path.syscall_instruction && offsets.syscall_offset) {
      path.syscall_instruction = vma.start + *offsets.syscall_offset;
      path.popped_words = offsets.popped_words;
    }
    if (!path.sigreturn_address && offsets.sigreturn_offset)
      path.sigreturn_address = vma.start + *offsets.sigreturn_offset;
    if (path.syscall_instruction && path.sigreturn_address) {
      if (still_there(host_pid, path)) return path;
      return std::nullopt;
    }
  }
  return std::nullopt;
}

}  // namespace stasis
