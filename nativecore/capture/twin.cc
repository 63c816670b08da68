#include "capture/twin.h"

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "base/fault_point.h"
#include "base/log_ring.h"
#include "base/native_error.h"
#include "base/page.h"
#include "base/sys.h"
#include "trace/ptrace_calls.h"

namespace stasis {
namespace {

// The child of the main thread with this pid in its innermost namespace.
pid_t find_child(const TracedProcess& process, pid_t ns_pid) {
  for (const pid_t child : process.proc.children({process.host_pid})) {
    const std::string path = "/proc/" + std::to_string(child) + "/status";
    const sys::Try<std::string> status = sys::try_read_file(-1, path.c_str());
    if (!status.ok()) continue;
    const std::vector<int32_t> pids = status_numbers(status.value, "NSpid");
    if (!pids.empty() && pids.back() == ns_pid) return child;
  }
  throw NativeError("task_gone", "looking for the twin").with_pid(process.host_pid);
}

// The part of a maps or smaps text that tells of the mapping at this address.
std::pair<size_t, size_t> part_of_mapping(const std::string& text, uint64_t address) {
  char start[32];
  const int length = std::snprintf(start, sizeof start, "%llx-", static_cast<unsigned long long>(address));
  const std::string_view wanted(start, static_cast<size_t>(length));
  size_t begin = text.starts_with(wanted) ? 0 : text.find("\n" + std::string(wanted));
  if (begin == std::string::npos) return {text.size(), 0};
  if (begin) ++begin;
  // To the next range line: only those begin with a hexadecimal digit in lower case.
  size_t end = text.find('\n', begin);
  while (end != std::string::npos && end + 1 < text.size() && text[end + 1] >= 'A' && text[end + 1] <= 'Z')
    end = text.find('\n', end + 1);
  end = end == std::string::npos ? text.size() : end + 1;
  return {begin, end - begin};
}

}  // namespace

uint64_t read_total_pages(const ProcDir& proc) {
  const std::string statm = proc.read("statm");
  uint64_t pages = 0;
  std::from_chars(statm.data(), statm.data() + statm.size(), pages);
  return pages;
}

std::unique_ptr<Twin> Twin::adopt(FrozenTree& tree, const TracedProcess& process, pid_t ns_pid, uint64_t region_address,
                                  const Deadline& deadline) {
  STASIS_CONTEXT("taking hold of the twin", process.host_pid);
  fault_point("twin_forked");
  TracedThread newborn{.host_tid = find_child(process, ns_pid)};
  tree.wait_for_stop(newborn, deadline);
  checked_ptrace(PTRACE_SETOPTIONS, newborn.host_tid, 0, PTRACE_O_EXITKILL);
  std::unique_ptr<Twin> twin(new Twin(ProcDir::open(newborn.host_tid), ns_pid, region_address));
  fault_point("twin_held");
  return twin;
}

std::string Twin::read_smaps() const {
  std::string smaps = proc_.read("smaps");
  const auto [begin, length] = part_of_mapping(smaps, region_address_);
  return smaps.erase(begin, length);
}

uint64_t Twin::read_total_pages() const {
  uint64_t pages = stasis::read_total_pages(proc_);
  const std::string maps = proc_.read("maps");
  const auto [begin, length] = part_of_mapping(maps, region_address_);
  for (const Vma& vma : parse_maps(std::string_view(maps).substr(begin, length)))
    pages -= (vma.end - vma.start) / kPageBytes;
  return pages;
}

void Twin::end() noexcept {
  if (ended_) return;
  ended_ = true;
  const pid_t host_pid = proc_.host_pid();
  if (::kill(host_pid, SIGKILL) < 0) return;  // it belongs to us until we have waited for it: the pid is its own
  int status = 0;
  do {
    const sys::Try<pid_t> waited = sys::try_waitpid(host_pid, &status, 0);
    if (!waited.ok()) return;
  } while (WIFSTOPPED(status));
}

}  // namespace stasis
