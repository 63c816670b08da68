// Stat and identity of what a /proc link names.
//
// Undo: nothing to undo. If we die here: the target has seen nothing.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "base/unique_fd.h"
#include "capture/capture_data.h"
#include "proc/proc_dir.h"

namespace stasis {

// statx(2) of `name` below /proc/PID, following the link.
CapturedStatx stat_of(int directory, const char* name, bool follow = true);
CapturedStatx to_captured(const struct statx& stat);

// Answers "does this path, in that task's root, still name this file?".
class PathChecker {
 public:
  explicit PathChecker(const ProcDir& proc);
  bool names(const std::string& link, const CapturedStatx& stat);
  // link, stat, file system and path_matches of /proc/PID/name.
  CapturedPath facts_of(const char* name);

 private:
  uint64_t magic_of(const char* name, uint64_t device);
  const ProcDir& proc_;
  UniqueFd root_;
  std::map<std::string, std::pair<uint64_t, uint64_t>> resolved_;  // path: device and inode, 0 if there is none
  std::map<uint64_t, uint64_t> magics_;                            // device: f_type
};

}  // namespace stasis
