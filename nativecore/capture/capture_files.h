// Descriptor tables and open file descriptions, each description once.
//
// Inside the window only what can change is read: fdinfo, through descriptors
// that were opened before (1 us instead of 5), and what a copy of the
// description tells. Names are found later, through the copies that are kept.
//
// Undo: copies are closed when the names have been found, or with the object.
// If we die here: our copies go with us; offsets and flags are shared with the
// target and not touched.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/unique_fd.h"
#include "capture/capture_context.h"
#include "capture/path_facts.h"
#include "capture/watched_paths.h"

namespace stasis {

class FilesCapture {
 public:
  // Opens fdinfo of all descriptors that the tree has now. The limit is that of our own descriptors.
  void open_before_freeze(const std::vector<ProcDir>& tree, size_t descriptor_limit);
  void capture(CaptureContext& context);
  // Links and what they name, when the target runs again or nothing waits for it.
  void find_names(CaptureContext& context);

 private:
  struct Descriptor;
  std::optional<std::string> read_fdinfo(const ProcDir& proc, int32_t fd) const;
  void open_texts(const std::vector<ProcDir>& tree, const std::vector<std::vector<int32_t>>& tables, size_t left);
  static bool read_on(int fdinfo, std::string& text);
  std::vector<int32_t> list_table(const ProcDir& proc, bool trust_known) const;
  std::vector<Descriptor> list_descriptors(CaptureContext& context, bool trust_known) const;
  bool look_at_descriptor(CaptureContext& context, Descriptor& descriptor, bool keep_copy) const;

  size_t copies_left_ = 0;  // how many descriptions may be held at once
  std::unordered_map<pid_t, std::unordered_map<int32_t, UniqueFd>> fdinfos_;
  struct Unnamed {
    size_t file = 0;  // index of open_files
    size_t task = 0;
    UniqueFd copy;  // none where there was no room for one: then the link is known
  };
  std::vector<Unnamed> unnamed_;
  WatchedPaths watched_paths_;
  std::vector<std::unique_ptr<PathChecker>> path_checkers_;  // by task; their roots are opened inside the window
};

}  // namespace stasis
