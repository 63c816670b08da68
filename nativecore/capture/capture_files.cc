#include "capture/capture_files.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/stat.h>

#include <cstdio>
#include <map>

#include "base/fault_point.h"
#include "base/native_error.h"
#include "base/sys.h"
#include "capture/capture_pipes.h"
#include "capture/capture_sockets.h"
#include "capture/capture_terminals.h"
#include "capture/kcmp_index.h"
#include "capture/path_facts.h"

namespace stasis {
namespace {

constexpr int kGetOwnerUids = 17;  // F_GETOWNER_UIDS, asm-generic/fcntl.h

// Descriptions can be equal only where file system, inode and link text are, so
// that kcmp is asked within small groups.
using DescriptionGroups = std::map<std::tuple<uint64_t, uint64_t, std::string>, KcmpIndex>;

// "flags:\t0100002" of fdinfo, octal.
uint64_t fdinfo_flags(std::string_view fdinfo) {
  const std::string text(status_field(fdinfo, "flags"));
  return std::strtoull(text.c_str(), nullptr, 8);
}

// The locks that fdinfo tells of, as lines of /proc/locks: reading that file
// itself waits for an RCU grace period (8 ms were measured).
void collect_locks(std::string& locks, std::string_view fdinfo) {
  constexpr std::string_view kLabel = "\nlock:\t";
  for (size_t at = fdinfo.find(kLabel); at != std::string_view::npos; at = fdinfo.find(kLabel, at)) {
    at += kLabel.size();
    const std::string_view line = fdinfo.substr(at, fdinfo.find('\n', at) - at);
    // A lock shows through every descriptor that it concerns.
    if (locks.find(line) == std::string::npos) (locks += line) += '\n';
  }
}

void look_at_description(CaptureContext& context, CapturedOpenFile& file, const TracedProcess& process,
                         PathChecker& paths) {
  sys::Try<UniqueFd> copy = sys::try_pidfd_getfd(process.pidfd.borrow(), TargetFd(file.fd));
  if (!copy.ok())
    throw NativeError::from_errno("pidfd_getfd", copy.error).with_pid(file.host_pid).with_target_fd(file.fd);
  const int fd = copy.value.borrow();
  file.status_flags = static_cast<int32_t>(sys::try_fcntl(fd, F_GETFL, 0).value);
  if (file.status_flags & O_PATH) return;  // nothing else can be asked of such a descriptor
  file.signal = static_cast<int32_t>(sys::try_fcntl(fd, F_GETSIG, 0).value);
  f_owner_ex owner{};
  if (sys::try_fcntl(fd, F_GETOWN_EX, reinterpret_cast<uint64_t>(&owner)).ok()) {
    file.owner.assign(reinterpret_cast<const char*>(&owner), sizeof owner);
  }
  uint32_t uids[2] = {};
  if (owner.pid && sys::try_fcntl(fd, kGetOwnerUids, reinterpret_cast<uint64_t>(uids)).ok())
    file.owner_uids.assign(uids, uids + 2);

  switch (file.path.stat.mode & S_IFMT) {
    case S_IFIFO: capture_pipe(context, file, fd); break;
    case S_IFSOCK: capture_socket(file, fd, paths); break;
    case S_IFCHR: capture_terminal(file, fd); break;
    default: break;
  }
}

void capture_table(CaptureContext& context, CapturedTask& task, const TracedProcess& process,
                   DescriptionGroups& groups) {
  STASIS_CONTEXT("capturing descriptors", task.host_pid);
  std::vector<CapturedOpenFile>& open_files = context.data.open_files;
  PathChecker paths(process.proc);
  for (const int32_t fd : process.proc.numbers("fd")) {
    STASIS_CONTEXT("capturing descriptor", task.host_pid, fd);
    char name[48];
    std::snprintf(name, sizeof name, "fdinfo/%d", fd);
    CapturedOpenFile file;
    file.host_pid = task.host_pid;
    file.fd = fd;
    file.fdinfo = process.proc.read(name);
    collect_locks(context.data.proc_locks, file.fdinfo);
    std::snprintf(name, sizeof name, "fd/%d", fd);
    file.path = paths.facts_of(name);
    const bool close_on_exec = (fdinfo_flags(file.fdinfo) & O_CLOEXEC) != 0;
    KcmpIndex& group =
        groups.try_emplace({file.path.stat.device, file.path.stat.inode, file.path.link}, KcmpIndex(KCMP_FILE))
            .first->second;
    const auto number = static_cast<uint32_t>(open_files.size());
    const std::optional<uint32_t> known = group.find_or_add(task.host_pid, static_cast<uint64_t>(fd), number);
    task.fds.push_back({fd, known.value_or(number), close_on_exec});
    if (known) continue;
    look_at_description(context, file, process, paths);
    open_files.push_back(std::move(file));
  }
}

}  // namespace

void capture_files(CaptureContext& context) {
  fault_point("capture_files");
  DescriptionGroups groups;
  for (size_t i = 0; i < context.data.tasks.size(); ++i) {
    CapturedTask& task = context.data.tasks[i];
    if (task.zombie || task.fd_table_host_pid != task.host_pid) continue;
    context.check_abort();
    capture_table(context, task, *context.tree.processes()[i], groups);
  }
}

}  // namespace stasis
