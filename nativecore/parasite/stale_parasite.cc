#include "parasite/stale_parasite.h"

#include <sys/syscall.h>
#include <time.h>

#include <algorithm>
#include <string_view>

#include "base/log_ring.h"
#include "base/native_error.h"
#include "base/sys.h"
#include "parasite/parasite_abi.h"
#include "trace/ptrace_calls.h"
#include "trace/thread_state.h"

namespace stasis {
namespace {

// Each look costs the waiting thread an interruption.
constexpr long kLookNanoseconds = 20'000'000;

}  // namespace

std::vector<StaleParasite> find_stale_parasites(pid_t host_pid, const std::vector<Vma>& vmas) {
  std::vector<StaleParasite> found;
  for (const Vma& vma : vmas) {
    if (!vma.shared || !vma.executable || !vma.writable || vma.name != "/dev/zero (deleted)") continue;
    char start[32] = {};
    const sys::Try<size_t> read = sys::try_process_vm_read(host_pid, start, vma.start, sizeof start);
    const std::string_view code(start, read.ok() ? read.value : 0);
    const bool is_signed = code.find(STASIS_PARASITE_SIGNATURE) != std::string_view::npos;
    const bool is_empty = code.find_first_not_of('\0') == std::string_view::npos;
    const bool is_at_home =
        vma.start - parasite::kHomeAddress < parasite::kHomeBytes && vma.start % parasite::kHomeStepBytes == 0;
    if (is_at_home && (is_signed || is_empty)) found.push_back({vma.start, vma.end - vma.start});
  }
  return found;
}

void let_threads_go_home(FrozenTree& tree, TracedProcess& process, const std::vector<StaleParasite>& stale,
                         const Deadline& deadline) {
  STASIS_CONTEXT("waiting for an earlier parasite to go home", process.host_pid);
  const auto is_inside = [&](const TracedThread& thread) {
    const uint64_t ip = read_registers(thread.host_tid).rip;
    return std::any_of(stale.begin(), stale.end(),
                       [&](const StaleParasite& region) { return ip - region.address < region.length_bytes; });
  };
  for (;;) {
    std::vector<TracedThread*> inside;
    for (TracedThread& thread : process.threads) {
      if (is_inside(thread)) inside.push_back(&thread);
    }
    if (inside.empty()) return;
    log_line("%zu threads of %d are in the parasite of an earlier run", inside.size(), process.host_pid);
    deadline.check("waiting for an earlier parasite to go home");
    for (TracedThread* thread : inside) {
      thread->stopped = false;
      checked_ptrace(PTRACE_CONT, thread->host_tid, 0, 0);
    }
    const timespec pause{0, kLookNanoseconds};
    ::nanosleep(&pause, nullptr);
    tree.interrupt(inside, deadline);
  }
}

}  // namespace stasis
