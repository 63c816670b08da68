#include "capture/capture_files.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "base/fault_point.h"
#include "base/native_error.h"
#include "base/parallel.h"
#include "base/sys.h"
#include "capture/capture_connections.h"
#include "capture/capture_pipes.h"
#include "capture/capture_sockets.h"
#include "capture/capture_terminals.h"
#include "capture/kcmp_index.h"
#include "capture/path_facts.h"

namespace stasis {
namespace {

constexpr int kGetOwnerUids = 17;  // F_GETOWNER_UIDS, asm-generic/fcntl.h

// Descriptions can be equal only where file system and inode are, so that kcmp
// is asked within small groups.
using DescriptionGroups = std::map<std::pair<uint64_t, uint64_t>, KcmpIndex>;

// A chunk is worth a thread, and shares what it learns of paths.
constexpr size_t kChunk = 32;
// Descriptors of our own that are left for everything else.
constexpr size_t kReservedDescriptors = 512;
constexpr size_t kDescriptorsPerProcess = 8;

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

// What the kernel prints for objects that have a number and no name.
std::string nameless_link(const CapturedStatx& stat) {
  switch (stat.mode & S_IFMT) {
    case S_IFSOCK: return "socket:[" + std::to_string(stat.inode) + "]";
    case S_IFIFO: return stat.filesystem_magic == PIPEFS_MAGIC ? "pipe:[" + std::to_string(stat.inode) + "]" : "";
    default: return {};
  }
}

std::string link_of(int own_fd) {
  const std::string name = "/proc/self/fd/" + std::to_string(own_fd);
  return sys::try_readlinkat(AT_FDCWD, name.c_str()).value;
}

// work(index) for each of `count` items, chunk by chunk, by several threads.
template <typename Work>
void for_each_in_chunks(CaptureContext& context, size_t count, Work work) {
  parallel_for((count + kChunk - 1) / kChunk, kMaximalWorkers, [&](size_t chunk, bool in_caller) {
    if (in_caller) context.check_abort();
    for (size_t i = chunk * kChunk; i < std::min(count, (chunk + 1) * kChunk); ++i) work(i);
  });
}

}  // namespace

// One descriptor of one table.
struct FilesCapture::Descriptor {
  size_t task = 0;
  bool close_on_exec = false;
  bool read_pipe = false;
  UniqueFd copy;
  CapturedOpenFile file;
  std::optional<CapturedPipe> pipe;

  void fetch_copy(const TracedProcess& process);
  void look_at_description(const TracedProcess& process);

 private:
  void ask_copy(const ProcDir& proc);
};

// Copies go before: without one, a description is looked at twice.
void FilesCapture::open_before_freeze(const std::vector<ProcDir>& tree, size_t descriptor_limit) {
  std::vector<std::vector<int32_t>> tables;
  size_t total = 0, in_use = 0;
  for (const ProcDir& proc : tree) {
    total += tables.emplace_back(proc.numbers("fdinfo")).size();
    in_use += 1 + proc.kept_open();
  }
  const size_t reserved = kReservedDescriptors + in_use;
  const size_t room = descriptor_limit > reserved ? descriptor_limit - reserved : 0;
  size_t left = room > total ? std::min(total, room - total) : 0;
  copies_left_ = room - left;
  // The table of descriptors grows now: with more than one thread the kernel would
  // wait for an RCU grace period each time (10 ms), inside the window.
  const size_t highest =
      std::min(room, left + total + kDescriptorsPerProcess * tree.size()) + in_use + kReservedDescriptors / 2;
  const sys::Try<int64_t> grown = sys::try_fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, highest);
  if (grown.ok()) const UniqueFd close_it(static_cast<int>(grown.value));
  open_texts(tree, tables, left);
  watched_paths_.find_before_freeze(tree, tables,
                                    [this](const ProcDir& proc, int32_t fd) { return read_fdinfo(proc, fd); });
}

void FilesCapture::open_texts(const std::vector<ProcDir>& tree, const std::vector<std::vector<int32_t>>& tables,
                              size_t left) {
  for (size_t i = 0; i < tree.size(); ++i) {
    for (const int32_t fd : tables[i]) {
      if (left == 0) return;
      char name[48];
      std::snprintf(name, sizeof name, "fdinfo/%d", fd);
      sys::Try<UniqueFd> opened = sys::try_openat(tree[i].borrow(), name, O_RDONLY);
      if (!opened.ok()) continue;  // closed meanwhile
      fdinfos_[tree[i].host_pid()].emplace(fd, std::move(opened.value));
      --left;
    }
  }
}

// The rest of a long one, of an epoll or an inotify. The kernel has made the whole text at once and keeps it: opened
// once more it would be made again (25 ms for 5000 watches).
bool FilesCapture::read_on(int fdinfo, std::string& text) {
  constexpr size_t kPieceBytes = 64 << 10;
  for (size_t length = text.size();;) {
    text.resize(length + kPieceBytes);
    const sys::Try<size_t> more = sys::try_pread(fdinfo, text.data() + length, kPieceBytes, length);
    if (!more.ok()) return false;
    length += more.value;
    if (more.value > 0) continue;
    text.resize(length);
    return true;
  }
}

// What was opened before tells of the descriptor that has this number now; it
// fails if there is none, or the process is another one.
std::optional<std::string> FilesCapture::read_fdinfo(const ProcDir& proc, int32_t fd) const {
  if (const auto process = fdinfos_.find(proc.host_pid()); process != fdinfos_.end()) {
    if (const auto opened = process->second.find(fd); opened != process->second.end()) {
      char text[1024];
      const sys::Try<size_t> length = sys::try_pread(opened->second.borrow(), text, sizeof text, 0);
      if (!length.ok() || length.value == 0) return std::nullopt;
      std::string all(text, length.value);
      if (length.value == sizeof text && !read_on(opened->second.borrow(), all)) return std::nullopt;
      return all;
    }
  }
  char name[48];
  std::snprintf(name, sizeof name, "fdinfo/%d", fd);
  const sys::Try<std::string> text = proc.try_read(name);
  return text.ok() ? std::optional(text.value) : std::nullopt;
}

// A list costs 1 us for each entry. If the directory has as many entries as
// before the freeze, and all of those are still there, it is the same list.
std::vector<int32_t> FilesCapture::list_table(const ProcDir& proc, bool trust_known) const {
  const auto known = fdinfos_.find(proc.host_pid());
  // Linux 6.2: the size of /proc/PID/fd is the number of descriptors; before, it is 0.
  if (!trust_known || known == fdinfos_.end() || stat_of(proc.borrow(), "fd").size_bytes != known->second.size())
    return proc.numbers("fdinfo");
  std::vector<int32_t> fds;
  for (const auto& entry : known->second) fds.push_back(entry.first);
  std::sort(fds.begin(), fds.end());
  return fds;
}

std::vector<FilesCapture::Descriptor> FilesCapture::list_descriptors(CaptureContext& context, bool trust_known) const {
  std::vector<CapturedTask>& tasks = context.data.tasks;
  std::vector<std::vector<int32_t>> numbers(tasks.size());
  parallel_for(tasks.size(), kMaximalWorkers, [&](size_t i, bool) {
    if (!tasks[i].zombie && tasks[i].fd_table_host_pid == tasks[i].host_pid)
      numbers[i] = list_table(context.tree.processes()[i]->proc, trust_known);
  });
  std::vector<Descriptor> found;
  for (size_t i = 0; i < tasks.size(); ++i) {
    for (const int32_t fd : numbers[i]) {
      Descriptor& descriptor = found.emplace_back();
      descriptor.task = i;
      descriptor.file.host_pid = tasks[i].host_pid;
      descriptor.file.fd = fd;
    }
  }
  return found;
}

// False: there is no such descriptor.
bool FilesCapture::look_at_descriptor(CaptureContext& context, Descriptor& descriptor, bool keep_copy) const {
  CapturedOpenFile& file = descriptor.file;
  STASIS_CONTEXT("capturing descriptor", file.host_pid, file.fd);
  const TracedProcess& process = *context.tree.processes()[descriptor.task];
  std::optional<std::string> fdinfo = read_fdinfo(process.proc, file.fd);
  if (!fdinfo) return false;
  file.fdinfo = std::move(*fdinfo);
  descriptor.close_on_exec = (fdinfo_flags(file.fdinfo) & O_CLOEXEC) != 0;
  if (!keep_copy) {
    char name[48];
    std::snprintf(name, sizeof name, "fd/%d", file.fd);
    file.path.stat = stat_of(process.proc.borrow(), name);
    return true;
  }
  descriptor.fetch_copy(process);
  const sys::Try<struct statx> stat = sys::try_statx(descriptor.copy.borrow(), "", AT_EMPTY_PATH);
  if (!stat.ok()) throw NativeError::from_errno("statx", stat.error).with_pid(file.host_pid).with_target_fd(file.fd);
  file.path.stat = to_captured(stat.value);
  return true;
}

void FilesCapture::Descriptor::fetch_copy(const TracedProcess& process) {
  sys::Try<UniqueFd> fetched = sys::try_pidfd_getfd(process.pidfd.borrow(), TargetFd(file.fd));
  if (!fetched.ok())
    throw NativeError::from_errno("pidfd_getfd", fetched.error).with_pid(file.host_pid).with_target_fd(file.fd);
  copy = std::move(fetched.value);
}

void FilesCapture::Descriptor::look_at_description(const TracedProcess& process) {
  STASIS_CONTEXT("capturing open file", file.host_pid, file.fd);
  if (copy.valid()) return ask_copy(process.proc);
  fetch_copy(process);
  ask_copy(process.proc);
  if (file.path.link.empty()) file.path.link = link_of(copy.borrow());
  copy.reset();
}

void FilesCapture::Descriptor::ask_copy(const ProcDir& proc) {
  const int fd = copy.borrow();
  file.path.stat.filesystem_magic = static_cast<uint64_t>(sys::try_fstatfs_type(fd).value);
  file.path.link = nameless_link(file.path.stat);
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
    case S_IFIFO:
      if (read_pipe) pipe = capture_pipe(file, fd);
      break;
    case S_IFSOCK: capture_socket(file, fd, proc); break;
    case S_IFCHR: capture_terminal(file, fd); break;
    // Objects without a type. Of what is no inotify nobody asks for the answer.
    case 0: (void)sys::try_ioctl(fd, FIONREAD, &file.unread_bytes); break;
    default: break;
  }
}

namespace {

// Fills the tables of the tasks; gives the descriptors through which each description is looked at.
template <typename Descriptors>
std::vector<size_t> find_descriptions(CaptureContext& context, Descriptors& descriptors) {
  DescriptionGroups groups;
  std::vector<size_t> first;
  for (size_t i = 0; i < descriptors.size(); ++i) {
    const CapturedOpenFile& file = descriptors[i].file;
    collect_locks(context.data.proc_locks, file.fdinfo);
    KcmpIndex& group =
        groups.try_emplace({file.path.stat.device, file.path.stat.inode}, KcmpIndex(KCMP_FILE)).first->second;
    const auto number = static_cast<uint32_t>(first.size());
    const std::optional<uint32_t> known = group.find_or_add(file.host_pid, static_cast<uint64_t>(file.fd), number);
    context.data.tasks[descriptors[i].task].fds.push_back(
        {file.fd, known.value_or(number), descriptors[i].close_on_exec});
    if (known) {
      descriptors[i].copy.reset();
    } else {
      first.push_back(i);
    }
  }
  return first;
}

}  // namespace

void FilesCapture::capture(CaptureContext& context) {
  fault_point("capture_files");
  STASIS_CONTEXT("capturing descriptors");
  std::vector<Descriptor> descriptors;
  bool complete = false;
  for (const bool trust_known : {true, false}) {
    descriptors = list_descriptors(context, trust_known);
    std::atomic<bool> missing = false;
    for_each_in_chunks(context, descriptors.size(), [&](size_t i) {
      if (!look_at_descriptor(context, descriptors[i], i < copies_left_)) missing = true;
    });
    complete = !missing;
    if (complete) break;
  }
  if (!complete) throw NativeError("conflict", "descriptors of a stopped process have gone");
  const std::vector<size_t> first = find_descriptions(context, descriptors);
  // The content of a pipe is read once, through the first descriptor that can.
  std::set<uint64_t> pipes;
  for (const size_t i : first) {
    const CapturedOpenFile& file = descriptors[i].file;
    if ((file.path.stat.mode & S_IFMT) == S_IFIFO && (fdinfo_flags(file.fdinfo) & O_ACCMODE) != O_WRONLY)
      descriptors[i].read_pipe = pipes.insert(file.path.stat.inode).second;
  }
  for_each_in_chunks(context, first.size(), [&](size_t number) {
    Descriptor& descriptor = descriptors[first[number]];
    descriptor.look_at_description(*context.tree.processes()[descriptor.task]);
  });
  path_checkers_.resize(context.data.tasks.size());
  for (const size_t i : first) {
    Descriptor& descriptor = descriptors[i];
    if (descriptor.pipe) context.data.pipes.push_back(std::move(*descriptor.pipe));
    if (nameless_link(descriptor.file.path.stat).empty()) {
      std::unique_ptr<PathChecker>& paths = path_checkers_[descriptor.task];
      if (!paths) paths = std::make_unique<PathChecker>(context.tree.processes()[descriptor.task]->proc);
      unnamed_.push_back({context.data.open_files.size(), descriptor.task, std::move(descriptor.copy)});
    } else if (is_connection(descriptor.file.socket)) {
      if (!descriptor.copy.valid()) descriptor.fetch_copy(*context.tree.processes()[descriptor.task]);
      context.connections->hold(context.data.open_files.size(), std::move(descriptor.copy));
    }
    context.data.open_files.push_back(std::move(descriptor.file));
  }
}

void FilesCapture::find_names(CaptureContext& context) {
  for_each_in_chunks(context, unnamed_.size(), [&](size_t i) {
    Unnamed& unnamed = unnamed_[i];
    CapturedPath& path = context.data.open_files[unnamed.file].path;
    if (unnamed.copy.valid()) path.link = link_of(unnamed.copy.borrow());
    path.path_matches = path_checkers_[unnamed.task]->names(path.link, path.stat);
    unnamed.copy.reset();
  });
  unnamed_.clear();
  watched_paths_.find(context);
}

}  // namespace stasis
