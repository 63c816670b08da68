// The hole from the coordinator's side: reserves it, loads interpreter, steps,
// blobs and slots into it, and drives the barriers.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/native_error.h"
#include "base/sys.h"
#include "executor/hole_layout.h"
#include "executor/plan_model.h"

namespace stasis {

class Hole {
 public:
  // Maps the range at the plan's address, shared, empty. Throws if something of
  // the core lies there.
  static Hole reserve(const Plan& plan);

  // Precondition: validate_request has accepted the plan. Throws
  // "hole_too_small" with the size that is needed. The first steps of the
  // prologue, one for each of `cgroup_files`, take the root into a cgroup.
  void load(const Plan& plan, const std::vector<UniqueFd>& cgroup_files);

  HoleHeader& header() const { return *reinterpret_cast<HoleHeader*>(mapping_.data()); }
  HoleTask& task(uint32_t index) const { return reinterpret_cast<HoleTask*>(header().tasks)[index]; }
  uint64_t slot(uint32_t number) const { return reinterpret_cast<const uint64_t*>(header().slots)[number]; }
  uint64_t entry() const { return entry_; }
  uint64_t address() const { return mapping_.address(); }
  uint64_t length_bytes() const { return mapping_.length_bytes(); }

  // Phases in which nobody has anything to do are passed without a barrier.
  bool has_barrier(uint32_t phase) const { return header().expected[phase] != 0; }
  bool is_complete(uint32_t phase) const;
  // Lets every task run `phase`.
  void open_stage(uint32_t phase) const;

  // Lets a task pass whatever awaits its first `count` userfaultfd ranges.
  void tell_filled(uint32_t task_index, uint32_t count) const;

  // Sleeps until a task reports something, at most `timeout_ns`.
  uint32_t events() const;
  void wait_for_events(uint32_t seen, uint64_t timeout_ns) const;

  bool has_failed() const;
  // Makes every task leave at its next step or wait. Async-signal-safe; called
  // by the janitor too.
  void fail_all() const;
  // What the first failing task reported.
  std::optional<HoleError> error() const;

 private:
  explicit Hole(sys::Mapping mapping) : mapping_(std::move(mapping)) {}
  sys::Mapping mapping_;
  uint64_t entry_ = 0;
};

// The reported failure as an exception, with position and the step's name.
NativeError describe_step_failure(const Plan& plan, const HoleError& error);

}  // namespace stasis
