// Paths of what inotify watches are on. The kernel tells device, inode and file
// handle of each. The path is looked for among those that the tree names anyhow;
// by the handle, of which overlayfs lets only that be opened which is in it, the
// layer's; and at last in all directories of the file system.
//
// That may take seconds, so it is done before the freeze for what is watched
// then; afterwards paths are compared, and what is new is looked for.
//
// Undo: nothing to undo. If we die here: the target has seen nothing; where
// it asked for IN_OPEN, it may hear that somebody has listed its directories.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "capture/capture_context.h"
#include "proc/proc_dir.h"

namespace stasis {

// A file as fdinfo of a watch tells it. stat(2) may tell another device (btrfs) or inode; and an overlay of several
// file systems has files with equal numbers, which only their handles tell apart.
struct WatchedId {
  uint64_t device = 0;
  uint64_t inode = 0;
  int32_t handle_type = 0;
  std::string handle;  // empty where the file system has none
  auto operator<=>(const WatchedId&) const = default;
};

struct Watch {
  int32_t number = 0;
  WatchedId id;
};

// The "inotify wd:" lines of an fdinfo text.
std::vector<Watch> parse_watches(std::string_view fdinfo);

class WatchedPaths {
 public:
  using ReadFdinfo = std::function<std::optional<std::string>(const ProcDir& proc, int32_t fd)>;
  // `tables`: the descriptors of each process. What a long text was read through is quicker the next time: the kernel
  // keeps the room for it.
  void find_before_freeze(const std::vector<ProcDir>& tree, const std::vector<std::vector<int32_t>>& tables,
                          const ReadFdinfo& read_fdinfo);
  // Fills watched_files of the open files, when the target runs again or nothing waits for it.
  void find(CaptureContext& context);

 private:
  struct Mount {
    uint64_t device = 0;
    std::string path;
    std::vector<std::string> layers;  // of an overlay: its directories as whoever mounted it named them
  };
  static Mount parse_mount(std::string_view line);
  using Wanted = std::multimap<uint64_t, WatchedId>;  // by inode

  void look_for(Wanted wanted, const std::vector<const ProcDir*>& tree);
  void try_names_of_tree(Wanted& wanted, const std::vector<const ProcDir*>& tree);
  void try_layers(Wanted& wanted, const Mount& overlay);
  bool settle_in_layer(Wanted& wanted, const Mount& overlay, const std::vector<std::string>& layers,
                       const UniqueFd& file, const WatchedId& id);
  void try_handles(Wanted& wanted, const Mount& mount);
  static std::vector<WatchedId> on(const Mount& mount, const Wanted& wanted);
  void try_directories(Wanted& wanted, const std::vector<const ProcDir*>& tree);
  static bool forget(Wanted& wanted, const WatchedId& id);
  bool settle(Wanted& wanted, const std::string& path, uint64_t inode);
  bool settle_nameless(Wanted& wanted, const char* path, const struct statx& stat);
  std::optional<CapturedPath> check(const std::string& path, const WatchedId& id, bool by_handle = true);
  std::optional<WatchedId> id_of(const char* path);

  UniqueFd root_;   // of the container's mount namespace
  UniqueFd probe_;  // an inotify of our own: what the kernel prints of a watch is what is compared
  std::vector<Mount> mounts_;
  std::map<WatchedId, CapturedPath> found_;
  std::set<WatchedId> looked_for_;  // in directories, too
};

}  // namespace stasis
