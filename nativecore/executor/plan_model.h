// schema/plan.proto as the executor sees it: decoded, not yet validated. Views
// point into the message that was received, which outlives the plan.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "executor/hole_layout.h"

namespace stasis {

constexpr size_t kMaximalSteps = 4u << 20;

struct PlanArg {
  enum class Kind : uint8_t { immediate, blob, slot, blob_offset, hole_offset };
  Kind kind = Kind::immediate;
  uint64_t value = 0;   // immediate, slot number, blob number, hole offset
  uint32_t offset = 0;  // blob_offset only
};

struct PlanStep {
  std::string_view op;
  std::vector<PlanArg> args;
  uint32_t out_slot = 0;
  bool has_expected = false;
  uint64_t expected = 0;
  std::vector<int32_t> tolerated_errnos;
};

struct PlanRelocation {
  enum class Kind : uint8_t { blob, slot32, slot64 };
  uint32_t offset = 0;
  Kind kind = Kind::blob;
  uint32_t target = 0;  // blob or slot number
};

struct PlanBlob {
  std::string_view data;
  std::vector<PlanRelocation> relocations;
  uint64_t length_bytes = 0;  // at least data.size() once decoded
};

struct PlanFill {
  enum class Method : uint32_t { uffd = 0, mem = 1 };
  Method method = Method::uffd;
  uint64_t address = 0;
  uint64_t page_count = 0;
  uint32_t page_file = 0;
  uint64_t file_offset_bytes = 0;
};

struct PlanRange {
  uint64_t address = 0;
  uint64_t length_bytes = 0;
};

struct PlanRelease {
  bool present = false;
  std::string_view registers;
  std::string_view xstate;
  uint64_t signal_mask = 0;
};

struct PlanPhase {
  uint32_t phase = 0;
  std::vector<PlanStep> steps;
};

struct PlanTask {
  TaskKind kind = TaskKind::process;
  uint32_t parent = 0;
  std::vector<int32_t> set_tid;
  uint64_t clone_flags = 0;
  std::vector<PlanPhase> phases;
  PlanRelease release;
  std::vector<PlanFill> fills;
  std::vector<PlanRange> uffd_ranges;
  uint32_t uffd_slot = 0;
  bool stopped = false;

  // Takes part in everything up to release.
  bool stays() const { return kind == TaskKind::process || kind == TaskKind::thread; }
  bool has_own_process() const { return kind != TaskKind::thread; }
};

struct PlanExternal {
  std::string_view name;
  uint32_t slot = 0;
  int32_t descriptor = -1;
};

struct PlanSocketCall {
  enum class Kind : uint32_t {
    setsockopt = 0,
    bind = 1,
    connect = 2,
    send = 3,
    shutdown = 4,
    send_raw = 5,
    await_peer_end = 6
  };
  Kind kind = Kind::setsockopt;
  int32_t level = 0;
  int32_t name = 0;
  std::string_view data;
};

struct PlanConnection {
  uint32_t task = 0;
  int32_t fd = -1;
  std::string_view local, peer;  // sockaddr
  std::vector<PlanSocketCall> calls, last_calls;
  std::string lock;
};

struct Plan {
  uint32_t version = 0;
  uint64_t hole_address = 0;
  uint64_t hole_length_bytes = 0;
  std::vector<PlanTask> tasks;
  std::vector<PlanBlob> blobs;
  uint32_t slot_count = 0;
  std::vector<PlanExternal> externals;
  std::vector<std::string> page_files;
  std::vector<PlanConnection> connections;
  int32_t network_descriptor = 0;
};

struct IdMapEntry {
  uint32_t inside = 0;
  uint32_t outside = 0;
  uint32_t count = 0;
};

struct UndoAction {
  enum class Kind : uint32_t { unknown = 0, remove_directory = 1, remove_file = 2, remove_cgroup = 3, remove_tree = 4 };
  Kind kind = Kind::unknown;
  std::string path;
  uint64_t inode = 0;  // directories: which one is meant; 0: whichever is there
};

struct ExecuteRequest {
  uint32_t version = 0;
  Plan plan;
  uint32_t deadline_ms = 0;
  std::vector<std::string> cgroup_tasks_files;
  std::string cgroup2_directory;
  std::vector<UndoAction> undo;
  std::vector<IdMapEntry> uid_map;
  std::vector<IdMapEntry> gid_map;
  std::vector<int32_t> stop_before_step;
  std::string start_fifo;  // not empty: the tree may be kept until it is opened
  bool lazy_pages = false;
  std::vector<std::string> page_file_digests;  // by number of the page file: page digest or sha256; "": unknown
};

}  // namespace stasis
