// What the sequence in execute_plan.cc calls: the coordinator of one restore.
// It owns everything that has to be taken back.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "base/control_channel.h"
#include "base/deadline.h"
#include "base/timing.h"
#include "executor/hole.h"
#include "executor/janitor.h"
#include "executor/lazy_memory.h"
#include "executor/parked_threads.h"
#include "executor/plan_model.h"
#include "executor/restored_connections.h"
#include "executor/restored_tree.h"
#include "executor/start_door.h"

namespace stasis {

class Coordinator {
 public:
  Coordinator(ControlChannel& channel, const ExecuteRequest& request, PhaseRecorder& timings);
  Coordinator(const Coordinator&) = delete;
  // Takes everything back, unless committed.
  ~Coordinator();

  void prepare();  // validation, hole, janitor
  void open_cgroups();
  void load_hole();
  void clone_root();
  void write_id_maps();
  // Lets the tasks run one phase and waits for its barrier, and for the exit of
  // those that are to leave in it.
  void run(uint32_t phase);
  void locate_processes();
  void fill();
  void locate_threads();
  void seize_threads();
  void send_parked();
  // True: release. False: to be kept until somebody starts it.
  bool await_release();
  // From here on nobody but the one who starts the container, or ends it, decides.
  void hand_over();
  // False: the container was killed instead. Its processes have gone then, and what was made for it stays, as it does
  // when the base runtime's own waiting container is killed: whoever deletes it takes that away.
  bool await_start();
  void release();
  void commit();

  // What could not be taken back. Idempotent.
  std::vector<NativeError> take_back();

 private:
  void run_steps(uint32_t phase);
  void await_barrier(uint32_t phase);
  void check_tasks();
  void check_interrupted();
  void throw_failure() const;
  NativeError describe_cgroup_failure(const HoleError& error) const;
  void leave_dead();

  ControlChannel& channel_;
  const ExecuteRequest& request_;
  const Plan& plan_;
  PhaseRecorder& timings_;
  Deadline deadline_;
  UniqueFd signals_;
  std::vector<UniqueFd> cgroup_files_;  // by number of the path; open until the root has them
  std::optional<Hole> hole_;
  std::optional<Janitor> janitor_;
  std::optional<RestoredTree> tree_;
  std::optional<LazyPages> lazy_;
  std::optional<ParkedThreads> threads_;
  std::optional<RestoredConnections> connections_;
  std::optional<StartDoor> door_;
  bool finished_ = false;
};

}  // namespace stasis
