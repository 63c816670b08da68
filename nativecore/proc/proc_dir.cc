#include "proc/proc_dir.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>

#include "base/lines.h"
#include "base/native_error.h"

namespace stasis {
namespace {

// The kernel's struct linux_dirent64, so that a directory costs one descriptor
// and no allocation of libc.
struct DirectoryEntry {
  uint64_t inode;
  int64_t offset;
  unsigned short length;
  unsigned char type;
  char name[1];
};

template <typename Number>
Number parse_number(std::string_view text, int base = 10) {
  Number value{};
  std::from_chars(text.data(), text.data() + text.size(), value, base);
  return value;
}

std::string_view take_word(std::string_view& line) {
  const size_t start = line.find_first_not_of(" \t");
  if (start == std::string_view::npos) {
    line = {};
    return {};
  }
  line.remove_prefix(start);
  const size_t end = std::min(line.find_first_of(" \t"), line.size());
  const std::string_view word = line.substr(0, end);
  line.remove_prefix(end);
  return word;
}

// Field `number` of /proc/PID/stat, counted from 1 as in proc(5). The command
// name may hold blanks and parentheses: counting starts after the last one.
std::string_view stat_field(std::string_view stat, int number) {
  const size_t close = stat.rfind(')');
  if (close == std::string_view::npos) throw NativeError("bug", "parsing /proc/PID/stat");
  std::string_view rest = stat.substr(close + 1);
  std::string_view word;
  for (int field = 3; field <= number; ++field) word = take_word(rest);
  return word;
}

}  // namespace

std::optional<ProcDir> ProcDir::try_open(pid_t host_pid) {
  const std::string path = "/proc/" + std::to_string(host_pid);
  sys::Try<UniqueFd> directory = sys::try_openat(AT_FDCWD, path.c_str(), O_RDONLY | O_DIRECTORY);
  if (!directory.ok()) return std::nullopt;
  return ProcDir(host_pid, std::move(directory.value));
}

ProcDir ProcDir::open(pid_t host_pid) {
  std::optional<ProcDir> opened = try_open(host_pid);
  if (!opened) throw NativeError("task_gone", "opening /proc of a process").with_pid(host_pid);
  return std::move(*opened);
}

void ProcDir::keep_open(const std::string& name) {
  sys::Try<UniqueFd> file = sys::try_openat(directory_.borrow(), name.c_str(), O_RDONLY);
  if (file.ok()) kept_.insert_or_assign(name, std::move(file.value));
}

sys::Try<std::string> ProcDir::try_read(const char* name) const {
  if (const auto kept = kept_.find(name); kept != kept_.end()) {
    // These two are made of records, each of which a read(2) may end with.
    const std::string_view last = std::string_view(name).substr(std::string_view(name).rfind('/') + 1);
    sys::Try<std::string> text = sys::try_read_again(kept->second.borrow(), last != "children" && last != "timers");
    if (text.ok()) return text;
  }
  return sys::try_read_file(directory_.borrow(), name);
}

std::string ProcDir::read(const char* name) const {
  sys::Try<std::string> text = try_read(name);
  if (!text.ok()) throw NativeError::from_errno("read", text.error).with_path(name).with_pid(host_pid_);
  return std::move(text.value);
}

std::optional<std::string> ProcDir::read_if_short(const char* name, size_t limit_bytes) const {
  const UniqueFd file = sys::openat(directory_.borrow(), name, O_RDONLY);
  static thread_local std::vector<char> buffer;  // fresh memory for each text would cost page faults
  if (buffer.size() < limit_bytes) buffer.resize(limit_bytes);
  for (size_t length = 0; length < limit_bytes;) {
    const sys::Try<int64_t> count =
        sys::try_syscall(SYS_read, static_cast<uint64_t>(file.borrow()),
                         reinterpret_cast<uint64_t>(buffer.data() + length), limit_bytes - length);
    if (!count.ok()) throw NativeError::from_errno("read", count.error).with_path(name).with_pid(host_pid_);
    if (count.value == 0) return std::string(buffer.data(), length);
    length += static_cast<size_t>(count.value);
  }
  return std::nullopt;
}

namespace {

// Numeric names in a directory, ascending; empty if it has gone.
std::vector<int32_t> numeric_names(int parent, const char* name) {
  std::vector<int32_t> found;
  const sys::Try<UniqueFd> directory = sys::try_openat(parent, name, O_RDONLY | O_DIRECTORY);
  if (!directory.ok()) return found;
  alignas(8) char buffer[32768];
  for (;;) {
    const sys::Try<int64_t> count = sys::try_syscall(SYS_getdents64, static_cast<uint64_t>(directory.value.borrow()),
                                                     reinterpret_cast<uint64_t>(buffer), sizeof buffer);
    if (!count.ok() || count.value == 0) break;
    for (int64_t at = 0; at < count.value;) {
      const auto* entry = reinterpret_cast<const DirectoryEntry*>(buffer + at);
      if (entry->name[0] >= '0' && entry->name[0] <= '9') found.push_back(parse_number<int32_t>(entry->name));
      at += entry->length;
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace

std::vector<int32_t> ProcDir::numbers(const char* subdirectory) const {
  return numeric_names(directory_.borrow(), subdirectory);
}

size_t ProcDir::thread_count() const {
  const sys::Try<struct statx> task = sys::try_statx(directory_.borrow(), "task", 0);
  // A link for each, and two that every directory has.
  return task.ok() && task.value.stx_nlink > 2 ? task.value.stx_nlink - 2 : 0;
}

std::vector<pid_t> process_ids() { return numeric_names(AT_FDCWD, "/proc"); }

std::vector<pid_t> ProcDir::children(const std::vector<pid_t>& host_tids) const {
  std::vector<pid_t> found;
  for (const pid_t host_tid : host_tids) {
    char name[64];
    std::snprintf(name, sizeof name, "task/%d/children", host_tid);
    const std::string text = read_or_empty(name);
    std::string_view rest = text;
    for (std::string_view word = take_word(rest); !word.empty(); word = take_word(rest)) {
      found.push_back(parse_number<pid_t>(word));
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

namespace {

constexpr const char* kTextsOfProcess[] = {"stat",          "status",   "cgroup",     "timers",
                                           "oom_score_adj", "loginuid", "personality"};
constexpr const char* kTextsOfThread[] = {"status", "cgroup", "children"};

}  // namespace

std::vector<ProcDir> find_running_tree(pid_t root_host_pid, size_t spare_descriptors) {
  std::vector<ProcDir> tree;
  std::vector<pid_t> found{root_host_pid};
  for (size_t i = 0; i < found.size(); ++i) {
    std::optional<ProcDir> proc = ProcDir::try_open(found[i]);
    if (!proc) continue;
    const std::vector<pid_t> threads = proc->numbers("task");
    const size_t wanted = std::size(kTextsOfProcess) + threads.size() * std::size(kTextsOfThread);
    if (wanted <= spare_descriptors) {
      spare_descriptors -= wanted;
      for (const char* name : kTextsOfProcess) proc->keep_open(name);
      for (const pid_t host_tid : threads)
        for (const char* name : kTextsOfThread) proc->keep_open("task/" + std::to_string(host_tid) + "/" + name);
    }
    const std::vector<pid_t> children = proc->children(threads);
    found.insert(found.end(), children.begin(), children.end());
    tree.push_back(std::move(*proc));
  }
  return tree;
}

size_t count_tasks(const std::vector<ProcDir>& tree) {
  size_t count = 0;
  for (const ProcDir& proc : tree) count += proc.thread_count();
  return count;
}

std::string map_files_name(uint64_t start, uint64_t end) {
  char name[64];
  std::snprintf(name, sizeof name, "map_files/%llx-%llx", static_cast<unsigned long long>(start),
                static_cast<unsigned long long>(end));
  return name;
}

char stat_state(std::string_view stat) {
  const std::string_view field = stat_field(stat, 3);
  return field.empty() ? '?' : field[0];
}

uint64_t stat_start_ticks(std::string_view stat) { return parse_number<uint64_t>(stat_field(stat, 22)); }

uint64_t stat_start_stack(std::string_view stat) { return parse_number<uint64_t>(stat_field(stat, 28)); }

int stat_exit_signal(std::string_view stat) { return parse_number<int>(stat_field(stat, 38)); }

int stat_processor(std::string_view stat) { return parse_number<int>(stat_field(stat, 39)); }

pid_t stat_parent(std::string_view stat) { return parse_number<pid_t>(stat_field(stat, 4)); }

std::string_view status_field(std::string_view status, std::string_view name) {
  std::string_view found;
  for_each_line(status, [&](std::string_view line) {
    if (found.empty() && line.size() > name.size() && line.substr(0, name.size()) == name && line[name.size()] == ':') {
      found = line.substr(name.size() + 1);
      const size_t start = found.find_first_not_of(" \t");
      found.remove_prefix(std::min(start, found.size()));
    }
  });
  return found;
}

std::vector<int32_t> status_numbers(std::string_view status, std::string_view name) {
  std::vector<int32_t> numbers;
  std::string_view rest = status_field(status, name);
  for (std::string_view word = take_word(rest); !word.empty(); word = take_word(rest)) {
    numbers.push_back(parse_number<int32_t>(word));
  }
  return numbers;
}

int64_t status_number(std::string_view status, std::string_view name, int64_t missing) {
  const std::string_view field = status_field(status, name);
  return field.empty() ? missing : parse_number<int64_t>(field);
}

std::vector<Vma> parse_maps(std::string_view text) {
  std::vector<Vma> found;
  for_each_line(text, [&](std::string_view line) {
    // smaps: "Size:   4 kB" lines begin with a capital letter, ranges with a hexadecimal digit.
    if (line.empty()) return;
    if (line[0] >= 'A' && line[0] <= 'Z') {
      if (!found.empty() && line.substr(0, 8) == "VmFlags:") {
        std::string_view rest = line.substr(8);
        bool droppable = false;
        for (std::string_view flag = take_word(rest); !flag.empty(); flag = take_word(rest)) {
          if (flag == "io" || flag == "pf") found.back().special = true;
          if (flag == "dc") found.back().not_forked = true;
          if (flag == "wf") found.back().wiped_by_fork = true;
          if (flag == "dp") droppable = true;
        }
        if (droppable) found.back().wiped_by_fork = false;
      }
      return;
    }
    std::string_view rest = line;
    const std::string_view range = take_word(rest);
    const std::string_view permissions = take_word(rest);
    const std::string_view offset = take_word(rest);
    const std::string_view device = take_word(rest);
    const std::string_view inode = take_word(rest);
    const size_t dash = range.find('-');
    const size_t colon = device.find(':');
    if (dash == std::string_view::npos || permissions.size() < 4 || colon == std::string_view::npos || inode.empty()) {
      throw NativeError("bug", "parsing /proc/PID/maps: " + std::string(line));
    }
    Vma vma;
    vma.start = parse_number<uint64_t>(range.substr(0, dash), 16);
    vma.end = parse_number<uint64_t>(range.substr(dash + 1), 16);
    vma.readable = permissions[0] == 'r';
    vma.writable = permissions[1] == 'w';
    vma.executable = permissions[2] == 'x';
    vma.shared = permissions[3] == 's';
    vma.offset = parse_number<uint64_t>(offset, 16);
    vma.device = parse_number<uint64_t>(device.substr(0, colon), 16) << 20 |
                 parse_number<uint64_t>(device.substr(colon + 1), 16);
    vma.inode = parse_number<uint64_t>(inode);
    const size_t name = rest.find_first_not_of(" \t");
    if (name != std::string_view::npos) vma.name = std::string(rest.substr(name));
    found.push_back(std::move(vma));
  });
  return found;
}

std::string smaps_without_counts(std::string_view smaps) {
  std::string kept;
  kept.reserve(smaps.size() / 8);
  for_each_line(smaps, [&kept](std::string_view line) {
    const bool is_range = !line.empty() && !(line[0] >= 'A' && line[0] <= 'Z');
    if (is_range || line.starts_with("VmFlags:") || line.starts_with("ProtectionKey:")) kept.append(line) += '\n';
  });
  return kept;
}

namespace {

// struct procmap_query of linux/fs.h, which our oldest headers lack.
struct ProcmapQuery {
  uint64_t size, query_flags, query_address;
  uint64_t start, end, flags, page_size, offset, inode;
  uint32_t device_major, device_minor, name_size, build_id_size;
  uint64_t name_address, build_id_address;
};
static_assert(sizeof(ProcmapQuery) == 104);
constexpr unsigned long kProcmapQuery = _IOWR('f', 17, ProcmapQuery);
constexpr uint64_t kReadable = 1, kWritable = 2, kExecutable = 4, kShared = 8;
constexpr uint64_t kCoveringOrNext = 16, kFileBacked = 32;

}  // namespace

MappingQuery::MappingQuery(const ProcDir& proc) {
  sys::Try<UniqueFd> maps = sys::try_openat(proc.borrow(), "maps", O_RDONLY);
  if (!maps.ok()) return;
  maps_ = std::move(maps.value);
  ProcmapQuery query{};
  query.size = sizeof query;
  query.query_flags = kCoveringOrNext;
  supported_ = sys::try_ioctl(maps_.borrow(), kProcmapQuery, &query).ok();
}

std::optional<Vma> MappingQuery::at_or_after(uint64_t address, bool file_backed) const {
  char name[PATH_MAX + 16];  // " (deleted)"
  ProcmapQuery query{};
  query.size = sizeof query;
  query.query_flags = kCoveringOrNext | (file_backed ? kFileBacked : 0);
  query.query_address = address;
  query.name_address = reinterpret_cast<uint64_t>(name);
  query.name_size = sizeof name;
  sys::Try<int64_t> answer = sys::try_ioctl(maps_.borrow(), kProcmapQuery, &query);
  if (answer.error == ENAMETOOLONG) {
    query.name_address = query.name_size = 0;
    answer = sys::try_ioctl(maps_.borrow(), kProcmapQuery, &query);
  }
  if (answer.error == ENOENT) return std::nullopt;
  if (!answer.ok()) throw NativeError::from_errno("ioctl(PROCMAP_QUERY)", answer.error).with_address(address);
  Vma vma;
  vma.start = query.start;
  vma.end = query.end;
  vma.readable = query.flags & kReadable;
  vma.writable = query.flags & kWritable;
  vma.executable = query.flags & kExecutable;
  vma.shared = query.flags & kShared;
  vma.offset = query.offset;
  vma.device = uint64_t{query.device_major} << 20 | query.device_minor;
  vma.inode = query.inode;
  // As maps has it, with line feeds escaped.
  for (const char letter : std::string_view(name, query.name_size ? query.name_size - 1 : 0))
    letter == '\n' ? vma.name += "\\012" : vma.name += letter;
  return vma;
}

std::vector<int32_t> parse_timer_ids(std::string_view timers) {
  std::vector<int32_t> ids;
  for_each_line(timers, [&](std::string_view line) {
    if (line.substr(0, 4) == "ID: ") ids.push_back(parse_number<int32_t>(line.substr(4)));
  });
  return ids;
}

}  // namespace stasis
