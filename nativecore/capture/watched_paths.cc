#include "capture/watched_paths.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/inotify.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>

#include "base/deadline.h"
#include "base/lines.h"
#include "base/log_ring.h"
#include "base/sys.h"
#include "capture/path_facts.h"

namespace stasis {
namespace {

constexpr const char* kInotifyLink = "anon_inode:inotify";
constexpr unsigned kMinorBits = 20;
// A cold disk lists some 100 000 names in a second.
constexpr uint64_t kLookingMs = 5'000;
constexpr uint64_t kMaximalNames = 2'000'000;
constexpr size_t kMaximalHandleBytes = 128;  // MAX_HANDLE_SZ

struct DirectoryCloser {
  void operator()(DIR* directory) const { ::closedir(directory); }
};

uint64_t hex_field(std::string_view line, std::string_view name) {
  const size_t at = line.find(name);
  return at == std::string_view::npos ? 0
                                      : std::strtoull(std::string(line.substr(at + name.size())).c_str(), nullptr, 16);
}

std::string bytes_of_hex(std::string_view digits) {
  std::string bytes;
  for (size_t i = 0; i + 1 < digits.size() && bytes.size() < kMaximalHandleBytes; i += 2)
    bytes += static_cast<char>(std::strtoul(std::string(digits.substr(i, 2)).c_str(), nullptr, 16));
  return bytes;
}

std::string own_link(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

// "\040" in a path of mountinfo is a space.
std::string unescaped(std::string_view text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      plain += static_cast<char>(std::strtoul(std::string(text.substr(i + 1, 3)).c_str(), nullptr, 8));
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

// The path and all directories above it.
void add_with_parents(std::set<std::string>& paths, std::string path) {
  while (paths.insert(path).second && path.size() > 1) {
    const size_t slash = path.rfind('/');
    path.resize(slash == 0 ? 1 : slash);
  }
}

// What overlayfs makes of the handle of a file in one of its layers (struct ovl_fh, which it writes to disks, too).
std::optional<WatchedId> handle_in_layer(const WatchedId& id) {
  constexpr int32_t kOverlayHandle = 0xf8;
  constexpr size_t kPadding = 3, kMagicAt = kPadding + 1, kTypeAt = kPadding + 4, kHandleAt = kPadding + 21;
  constexpr char kMagic = '\xfb';
  if (id.handle_type != kOverlayHandle || id.handle.size() <= kHandleAt || id.handle[kMagicAt] != kMagic)
    return std::nullopt;
  return WatchedId{0, 0, static_cast<unsigned char>(id.handle[kTypeAt]), id.handle.substr(kHandleAt)};
}

// The file that has this handle, on the file system of `place`.
UniqueFd open_handle(int place, const WatchedId& id) {
  struct {
    file_handle head;
    unsigned char bytes[kMaximalHandleBytes];
  } handle{};
  handle.head.handle_bytes = static_cast<unsigned>(id.handle.size());
  handle.head.handle_type = id.handle_type;
  std::memcpy(handle.head.f_handle, id.handle.data(), id.handle.size());
  return UniqueFd(::open_by_handle_at(place, &handle.head, O_PATH | O_CLOEXEC));
}

std::string_view take_field(std::string_view& line, char separator) {
  const size_t end = std::min(line.find(separator), line.size());
  const std::string_view field = line.substr(0, end);
  line.remove_prefix(std::min(end + 1, line.size()));
  return field;
}

// "/a:/b\:c": a colon in a name has a backslash before it.
void add_layers(std::vector<std::string>& layers, const std::string& list) {
  std::string layer;
  for (size_t i = 0; i <= list.size(); ++i) {
    if (i == list.size() || list[i] == ':') {
      if (!layer.empty()) layers.push_back(std::move(layer));
      layer.clear();
    } else if (list[i] == '\\' && i + 1 < list.size()) {
      layer += list[++i];
    } else {
      layer += list[i];
    }
  }
}

}  // namespace

std::vector<Watch> parse_watches(std::string_view fdinfo) {
  std::vector<Watch> watches;
  for_each_line(fdinfo, [&](std::string_view line) {
    if (!line.starts_with("inotify wd:")) return;
    Watch& watch = watches.emplace_back();
    watch.number = static_cast<int32_t>(hex_field(line, "inotify wd:"));
    watch.id = {hex_field(line, " sdev:"), hex_field(line, " ino:"),
                static_cast<int32_t>(hex_field(line, " fhandle-type:")), ""};
    constexpr std::string_view kHandle = " f_handle:";
    if (const size_t at = line.find(kHandle); at != std::string_view::npos)
      watch.id.handle = bytes_of_hex(line.substr(at + kHandle.size()));
  });
  return watches;
}

// "36 35 98:0 /root /mount/point rw,noatime shared:1 - ext4 /dev/root rw,errors=continue"
WatchedPaths::Mount WatchedPaths::parse_mount(std::string_view line) {
  Mount mount;
  for (int skipped = 0; skipped < 2; ++skipped) take_field(line, ' ');
  const std::string numbers(take_field(line, ' '));
  char* end = nullptr;
  const uint64_t major = std::strtoull(numbers.c_str(), &end, 10);
  if (*end == ':') mount.device = major << kMinorBits | std::strtoull(end + 1, nullptr, 10);
  take_field(line, ' ');
  mount.path = unescaped(take_field(line, ' '));
  while (!line.empty() && take_field(line, ' ') != "-") {
  }
  if (take_field(line, ' ') != "overlay") return mount;
  take_field(line, ' ');
  while (!line.empty()) {
    std::string_view option = take_field(line, ',');
    const std::string_view name = take_field(option, '=');
    if (name == "upperdir" || name == "lowerdir" || name == "lowerdir+") add_layers(mount.layers, unescaped(option));
  }
  return mount;
}

void WatchedPaths::find_before_freeze(const std::vector<ProcDir>& tree, const std::vector<std::vector<int32_t>>& tables,
                                      const ReadFdinfo& read_fdinfo) {
  if (tree.empty()) return;
  root_ = open_namespace_root(tree.front());
  Wanted wanted;
  std::vector<const ProcDir*> processes;
  for (size_t i = 0; i < tree.size(); ++i) {
    processes.push_back(&tree[i]);
    for (const int32_t fd : tables[i]) {
      if (tree[i].try_readlink(("fd/" + std::to_string(fd)).c_str()).value != kInotifyLink) continue;
      for (const Watch& watch : parse_watches(read_fdinfo(tree[i], fd).value_or("")))
        wanted.emplace(watch.id.inode, watch.id);
    }
  }
  look_for(std::move(wanted), processes);
}

void WatchedPaths::find(CaptureContext& context) {
  std::vector<const ProcDir*> processes;
  for (const auto& process : context.tree.processes()) processes.push_back(&process->proc);
  Wanted wanted;
  std::vector<std::pair<CapturedOpenFile*, std::vector<Watch>>> watching;
  for (CapturedOpenFile& file : context.data.open_files) {
    if (file.path.link != kInotifyLink) continue;
    auto& [unused, watches] = watching.emplace_back(&file, parse_watches(file.fdinfo));
    for (const Watch& watch : watches) {
      const auto known = found_.find(watch.id);
      if (known != found_.end() && known->second.path_matches) {
        // What is copied up in an overlay meanwhile gets another handle.
        if (const std::optional<CapturedPath> still = check(known->second.link, watch.id, false)) {
          known->second = *still;
          continue;
        }
        found_.erase(known);
        looked_for_.erase(watch.id);  // renamed meanwhile
      }
      wanted.emplace(watch.id.inode, watch.id);
    }
  }
  look_for(std::move(wanted), processes);
  for (auto& [file, watches] : watching) {
    for (const Watch& watch : watches) {
      const auto known = found_.find(watch.id);
      if (known != found_.end()) file->watched_files.push_back({watch.number, known->second});
    }
  }
}

void WatchedPaths::look_for(Wanted wanted, const std::vector<const ProcDir*>& tree) {
  if (wanted.empty() || !root_.valid() || tree.empty()) return;
  if (!probe_.valid()) probe_ = UniqueFd(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  mounts_.clear();
  for_each_line(tree.front()->read_or_empty("mountinfo"),
                [&](std::string_view line) { mounts_.push_back(parse_mount(line)); });
  try_names_of_tree(wanted, tree);
  for (const Mount& mount : mounts_) {
    if (mount.layers.empty()) {
      try_handles(wanted, mount);
    } else {
      try_layers(wanted, mount);
    }
  }
  std::erase_if(wanted, [this](const auto& entry) { return !looked_for_.insert(entry.second).second; });
  if (!wanted.empty()) try_directories(wanted, tree);
}

// The path, if it names the watched file in the container.
std::optional<CapturedPath> WatchedPaths::check(const std::string& path, const WatchedId& id, bool by_handle) {
  const sys::Try<UniqueFd> file =
      sys::try_openat2(root_.borrow(), path.c_str(), O_PATH | O_NOFOLLOW, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
  if (!file.ok()) return std::nullopt;
  const sys::Try<struct statx> stat = sys::try_statx(file.value.borrow(), "", AT_EMPTY_PATH);
  const std::optional<WatchedId> found = id_of(own_link(file.value.borrow()).c_str());
  if (!stat.ok() || !found || found->device != id.device || found->inode != id.inode) return std::nullopt;
  if (by_handle && probe_.valid() && found->handle != id.handle) return std::nullopt;
  return CapturedPath{path, to_captured(stat.value), true};
}

std::optional<WatchedId> WatchedPaths::id_of(const char* path) {
  if (!probe_.valid()) {  // none is left for us (fs.inotify.max_user_instances)
    const CapturedStatx stat = stat_of(AT_FDCWD, path);
    return WatchedId{stat.device, stat.inode, 0, ""};
  }
  const int number = ::inotify_add_watch(probe_.borrow(), path, IN_DELETE_SELF);
  if (number < 0) return std::nullopt;
  const std::string name = "/proc/self/fdinfo/" + std::to_string(probe_.borrow());
  const std::vector<Watch> own = parse_watches(sys::try_read_file(AT_FDCWD, name.c_str()).value);
  (void)::inotify_rm_watch(probe_.borrow(), number);
  return own.size() == 1 ? std::optional(own.front().id) : std::nullopt;
}

// False: it was not wanted.
bool WatchedPaths::forget(Wanted& wanted, const WatchedId& id) {
  auto [at, last] = wanted.equal_range(id.inode);
  bool was_wanted = false;
  while (at != last) {
    if (at->second == id) {
      at = wanted.erase(at);
      was_wanted = true;
    } else {
      ++at;
    }
  }
  return was_wanted;
}

bool WatchedPaths::settle(Wanted& wanted, const std::string& path, uint64_t inode) {
  const auto [first, last] = wanted.equal_range(inode);
  for (auto candidate = first; candidate != last; ++candidate) {
    const WatchedId id = candidate->second;
    const std::optional<CapturedPath> found = check(path, id);
    if (!found) continue;
    found_[id] = *found;
    forget(wanted, id);
    return true;
  }
  return false;
}

// A file that has no name any more, reached by a link of /proc.
bool WatchedPaths::settle_nameless(Wanted& wanted, const char* path, const struct statx& stat) {
  if (stat.stx_nlink != 0 || !wanted.contains(stat.stx_ino)) return false;
  const std::optional<WatchedId> id = id_of(path);
  if (!id || !forget(wanted, *id)) return false;
  found_[*id] = {"", to_captured(stat), false};
  return true;
}

// What is watched is mostly what is used: configuration beside the program, the working directory, what is mounted.
void WatchedPaths::try_names_of_tree(Wanted& wanted, const std::vector<const ProcDir*>& tree) {
  std::set<std::string> paths;
  for (const ProcDir* proc : tree) {
    std::vector<std::string> names = {"cwd", "root", "exe"};
    for (const int32_t fd : proc->numbers("fd")) names.push_back("fd/" + std::to_string(fd));
    for (const std::string& name : names) {
      const sys::Try<std::string> link = proc->try_readlink(name.c_str());
      if (!link.value.starts_with("/")) continue;
      add_with_parents(paths, link.value);
      if (!link.value.ends_with(" (deleted)")) continue;
      const sys::Try<struct statx> stat = sys::try_statx(proc->borrow(), name.c_str(), 0);
      const std::string path = "/proc/" + std::to_string(proc->host_pid()) + "/" + name;
      if (stat.ok()) settle_nameless(wanted, path.c_str(), stat.value);
    }
  }
  for (const Mount& mount : mounts_) add_with_parents(paths, mount.path);
  for (const std::string& path : paths) {
    if (wanted.empty()) return;
    const std::string below = path == "/" ? "." : path.substr(1);
    const sys::Try<struct statx> stat = sys::try_statx(root_.borrow(), below.c_str(), AT_SYMLINK_NOFOLLOW);
    if (stat.ok()) settle(wanted, path, stat.value.stx_ino);
  }
}

std::vector<WatchedId> WatchedPaths::on(const Mount& mount, const Wanted& wanted) {
  std::vector<WatchedId> here;
  for (const auto& [inode, id] : wanted)
    if (id.device == mount.device && !id.handle.empty()) here.push_back(id);
  return here;
}

void WatchedPaths::try_handles(Wanted& wanted, const Mount& mount) {
  const std::vector<WatchedId> here = on(mount, wanted);
  if (here.empty()) return;
  // Neither devices nor FIFOs are opened; a file system is named by any file in it.
  const sys::Try<UniqueFd> place =
      sys::try_openat2(root_.borrow(), mount.path.c_str(), O_PATH, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
  if (!place.ok()) return;
  const uint32_t type = stat_of(place.value.borrow(), "").mode & S_IFMT;
  if (type != S_IFDIR && type != S_IFREG) return;
  const sys::Try<UniqueFd> opened =
      sys::try_openat(AT_FDCWD, own_link(place.value.borrow()).c_str(), O_RDONLY | O_NONBLOCK);
  if (!opened.ok()) return;
  for (const WatchedId& id : here) {
    const UniqueFd file = open_handle(opened.value.borrow(), id);
    if (!file.valid()) continue;
    const std::string own = own_link(file.borrow());
    const sys::Try<struct statx> stat = sys::try_statx(file.borrow(), "", AT_EMPTY_PATH);
    if (!stat.ok() || settle_nameless(wanted, own.c_str(), stat.value)) continue;
    const sys::Try<std::string> link = sys::try_readlinkat(AT_FDCWD, own.c_str());
    if (link.value.starts_with("/")) settle(wanted, link.value, id.inode);
  }
}

// A path in a layer is one in the overlay. The layers are looked for where we are, as whoever mounted them did.
void WatchedPaths::try_layers(Wanted& wanted, const Mount& overlay) {
  const std::vector<WatchedId> here = on(overlay, wanted);
  if (here.empty()) return;
  std::vector<std::string> layers;
  std::map<uint64_t, UniqueFd> places;  // one for each file system
  for (const std::string& layer : overlay.layers) {
    sys::Try<UniqueFd> opened = sys::try_openat(AT_FDCWD, layer.c_str(), O_RDONLY | O_DIRECTORY);
    if (!opened.ok()) continue;
    layers.push_back(sys::try_readlinkat(AT_FDCWD, own_link(opened.value.borrow()).c_str()).value);
    const uint64_t device = stat_of(opened.value.borrow(), "").device;
    places.try_emplace(device, std::move(opened.value));
  }
  for (const WatchedId& id : here) {
    const std::optional<WatchedId> inner = handle_in_layer(id);
    if (!inner) continue;
    for (const auto& [device, place] : places)
      if (settle_in_layer(wanted, overlay, layers, open_handle(place.borrow(), *inner), id)) break;
  }
}

bool WatchedPaths::settle_in_layer(Wanted& wanted, const Mount& overlay, const std::vector<std::string>& layers,
                                   const UniqueFd& file, const WatchedId& id) {
  if (!file.valid()) return false;
  const CapturedStatx stat = stat_of(file.borrow(), "");
  if (stat.link_count == 0 && stat.inode == id.inode) {
    found_[id] = {"", stat, false};
    forget(wanted, id);
    return true;
  }
  const sys::Try<std::string> link = sys::try_readlinkat(AT_FDCWD, own_link(file.borrow()).c_str());
  const std::string top = overlay.path == "/" ? "" : overlay.path;
  for (const std::string& layer : layers) {
    if (!(link.value + "/").starts_with(layer + "/")) continue;
    const std::string path = top + link.value.substr(layer.size());
    if (settle(wanted, path.empty() ? "/" : path, id.inode)) return true;
  }
  return false;
}

// Breadth first: below the working directories, then everything on the file systems in question.
void WatchedPaths::try_directories(Wanted& wanted, const std::vector<const ProcDir*>& tree) {
  std::vector<std::string> starts;
  const auto start_at = [&](const std::string& path) {
    if (path.starts_with('/') && std::find(starts.begin(), starts.end(), path) == starts.end()) starts.push_back(path);
  };
  for (const ProcDir* proc : tree) start_at(proc->try_readlink("cwd").value);
  for (const Mount& mount : mounts_)
    if (std::any_of(wanted.begin(), wanted.end(), [&](const auto& e) { return e.second.device == mount.device; }))
      start_at(mount.path);

  const Deadline deadline = Deadline::in_ms(kLookingMs);
  uint64_t names = 0;
  for (const std::string& start : starts) {
    const sys::Try<UniqueFd> top =
        sys::try_openat2(root_.borrow(), start.c_str(), O_PATH | O_DIRECTORY, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
    if (!top.ok()) continue;
    std::deque<std::string> directories{"."};
    for (; !directories.empty(); directories.pop_front()) {
      if (wanted.empty()) return;
      if (names > kMaximalNames || deadline.expired()) {
        log_line("not all directories were searched for watched files: there are too many");
        return;
      }
      const std::string& below = directories.front();
      sys::Try<UniqueFd> opened =
          sys::try_openat2(top.value.borrow(), below.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW,
                           RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV);
      if (!opened.ok()) continue;
      const std::string prefix = below == "." ? "" : below + "/";
      const std::string shown = start == "/" ? "/" : start + "/";
      // Of directories an overlay lists other numbers than stat(2) has.
      settle(wanted, below == "." ? start : shown + below, stat_of(opened.value.borrow(), "").inode);
      // The stream closes it.
      const std::unique_ptr<DIR, DirectoryCloser> stream(::fdopendir(opened.value.release()));
      while (const dirent* entry = stream ? ::readdir(stream.get()) : nullptr) {
        const std::string name = entry->d_name;
        if (name == "." || name == "..") continue;
        ++names;
        if (entry->d_type == DT_DIR || entry->d_type == DT_UNKNOWN) directories.push_back(prefix + name);
        if (entry->d_type != DT_DIR) settle(wanted, shown + prefix + name, entry->d_ino);
      }
    }
  }
}

}  // namespace stasis
