#include "capture/capture_strangers.h"

#include <fcntl.h>

#include <charconv>
#include <filesystem>
#include <set>

#include "base/native_error.h"
#include "base/sys.h"

namespace stasis {
namespace {

void add_members(const std::string& directory, std::set<pid_t>& members) {
  const sys::Try<std::string> text = sys::try_read_file(AT_FDCWD, (directory + "/cgroup.procs").c_str());
  const char* position = text.value.data();
  const char* const end = position + text.value.size();
  while (position < end) {
    pid_t host_pid = 0;
    const auto parsed = std::from_chars(position, end, host_pid);
    if (parsed.ec == std::errc() && host_pid > 0) members.insert(host_pid);
    position = parsed.ptr + 1;
  }
}

}  // namespace

void capture_strangers(CaptureContext& context) {
  STASIS_CONTEXT("looking for tasks outside the tree");
  std::set<pid_t> members;
  for (const std::string& directory : context.request.cgroup_directories) {
    add_members(directory, members);
    std::error_code error;
    for (std::filesystem::recursive_directory_iterator entry(directory, error), end; !error && entry != end;
         entry.increment(error)) {
      if (entry->is_directory(error)) add_members(entry->path(), members);
    }
  }
  for (const auto& process : context.tree.processes()) members.erase(process->host_pid);
  for (const CapturedTask& task : context.data.tasks) {
    if (task.twin) members.erase(task.twin->proc().host_pid());
  }
  for (const pid_t host_pid : members) {
    const std::optional<ProcDir> proc = ProcDir::try_open(host_pid);
    if (!proc) continue;
    CapturedStranger stranger;
    stranger.host_pid = host_pid;
    stranger.comm = proc->read_or_empty("comm");
    if (!stranger.comm.empty() && stranger.comm.back() == '\n') stranger.comm.pop_back();
    stranger.cgroup = proc->read_or_empty("cgroup");
    stranger.ns_pid = std::string(status_field(proc->read_or_empty("status"), "NSpid"));
    context.data.strangers.push_back(std::move(stranger));
  }
}

}  // namespace stasis
