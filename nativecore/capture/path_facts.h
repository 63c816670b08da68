// Stat and identity of what a /proc link names.
//
// Undo: nothing to undo. If we die here: the target has seen nothing.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "base/unique_fd.h"
#include "capture/capture_data.h"
#include "proc/proc_dir.h"

namespace stasis {

// statx(2) of `name` below /proc/PID, following the link; of the descriptor itself if there is no name.
CapturedStatx stat_of(int directory, const char* name, bool follow = true);
CapturedStatx to_captured(const struct statx& stat);

// Root of the task's mount namespace, whatever root it has itself; invalid if the task has gone.
UniqueFd open_namespace_root(const ProcDir& proc);

// What was found out about paths, for tasks that see the same ones: a hundred
// processes of one program name its libraries a hundred times. For several threads.
class PathMemo {
 public:
  template <typename Value, typename Find>
  Value get(std::map<std::string, Value> PathMemo::*of, const std::string& key, Find find) {
    {
      const std::lock_guard lock(mutex_);
      const auto known = (this->*of).find(key);
      if (known != (this->*of).end()) return known->second;
    }
    Value found = find();
    const std::lock_guard lock(mutex_);
    return (this->*of).try_emplace(key, std::move(found)).first->second;
  }
  using FileId = std::pair<uint64_t, uint64_t>;  // device and inode, 0 if there is none
  std::map<std::string, FileId> resolved;        // by root and path
  std::map<std::string, uint64_t> magics;        // f_type, by device
  std::map<std::string, CapturedPath> mapped;    // by root and file

 private:
  std::mutex mutex_;
};

// Answers "does this path, in that task's root, still name this file?".
class PathChecker {
 public:
  explicit PathChecker(const ProcDir& proc) : PathChecker(proc, own_memo_, 0) {}
  // With a memo that other tasks use as well. `mount_namespace`: the task's.
  PathChecker(const ProcDir& proc, PathMemo& memo, uint64_t mount_namespace);
  bool names(const std::string& link, const CapturedStatx& stat);
  // link, stat, file system and path_matches of /proc/PID/name.
  CapturedPath facts_of(const char* name);
  // The same of "map_files/...", asked once for each file; device, inode and name are as maps has them.
  CapturedPath facts_of_mapped(const Vma& vma);

 private:
  uint64_t magic_of(const char* name, uint64_t device);
  PathMemo::FileId resolve(const std::string& path, bool is_link) const;
  const ProcDir& proc_;
  PathMemo own_memo_;
  PathMemo& memo_;
  UniqueFd root_;
  std::string root_id_;  // what tells this task's root from others
};

}  // namespace stasis
