// Whole restores: what is there afterwards, and what is taken back.
#include "executor/testing_restore.h"

using namespace stasis;
using namespace stasis::testing;

namespace {

void restore_and_expect_output(const TinyOptions& options) {
  Stage stage;
  TinyPlan plan = tiny_plan(options);
  stage.add_undo(plan.request);
  CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()});
  stage.out_write.reset();
  core.send(ToCoreKind::execute, encode(plan.request));
  const auto parked = core.receive();
  expect_kind(parked, FromCoreKind::parked);
  print_timings("parked", parked->body, 3);
  core.send(ToCoreKind::release, "");
  const auto released = core.receive();
  expect_kind(released, FromCoreKind::released);
  print_timings("released", released->body, 1);
  if (options.stopped_child) {
    EXPECT_EQ(sorted_lines(read_until_end(stage.out_read.borrow(), 10)), "root thrd ");
    const pid_t root = root_pid_of(*parked);
    ::kill(root, SIGKILL);
  } else {
    EXPECT_EQ(sorted_lines(read_until_end(stage.out_read.borrow(), 20)), "chld done root thrd ");
  }
  expect_no_descendants();
  EXPECT(stage.state_exists());
}

void restores_into_a_pid_namespace() { restore_and_expect_output({}); }
void restores_without_namespaces() { restore_and_expect_output({.pid_namespace = false}); }
void restores_with_a_helper() { restore_and_expect_output({.helper = true}); }
void restores_with_a_helper_without_namespaces() {
  restore_and_expect_output({.pid_namespace = false, .helper = true});
}
void restores_a_zombie() { restore_and_expect_output({.zombie = true}); }
void leaves_a_stopped_process_stopped() { restore_and_expect_output({.stopped_child = true}); }

void restarts_an_interrupted_call() { restore_and_expect_output({.interrupted = true}); }

void aborts_when_parked() {
  Stage stage;
  TinyPlan plan = tiny_plan({});
  stage.add_undo(plan.request);
  CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()});
  core.send(ToCoreKind::execute, encode(plan.request));
  expect_kind(core.receive(), FromCoreKind::parked);
  core.send(ToCoreKind::abort, "");
  expect_kind(core.receive(), FromCoreKind::rolled_back);
  expect_no_descendants();
  EXPECT(!stage.state_exists());
}

void rolls_back_when_the_other_side_dies() {
  Stage stage;
  TinyPlan plan = tiny_plan({});
  stage.add_undo(plan.request);
  CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()});
  core.send(ToCoreKind::execute, encode(plan.request));
  expect_kind(core.receive(), FromCoreKind::parked);
  core.hang_up();
  expect_no_descendants();
  EXPECT(!stage.state_exists());
}

void fails_when_a_parked_task_is_killed() {
  Stage stage;
  TinyPlan plan = tiny_plan({});
  stage.add_undo(plan.request);
  CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()});
  core.send(ToCoreKind::execute, encode(plan.request));
  const auto parked = core.receive();
  expect_kind(parked, FromCoreKind::parked);
  ::kill(root_pid_of(*parked), SIGKILL);
  const auto failed = core.receive();
  expect_kind(failed, FromCoreKind::failed);
  EXPECT_EQ(decode_failure(failed->body).reason, "task_gone");
  expect_no_descendants();
  EXPECT(!stage.state_exists());
}

void names_the_step_that_fails() {
  Stage stage;
  TinyPlan plan = tiny_plan({});
  stage.add_undo(plan.request);
  plan.add_step(plan.child, kPhaseCredentials,
                step("chdir", {blob(plan.add_blob(std::string("/nonexistent/directory", 23)))}));
  CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()});
  core.send(ToCoreKind::execute, encode(plan.request));
  const auto reply = core.receive();
  expect_kind(reply, FromCoreKind::failed);
  const DecodedFailure failure = decode_failure(reply->body);
  EXPECT_EQ(failure.task, plan.child);
  EXPECT_EQ(failure.phase, kPhaseCredentials);
  EXPECT_EQ(failure.step, 3u);
  EXPECT_EQ(failure.op, "chdir");
  EXPECT_EQ(failure.result, -ENOENT);
  EXPECT_EQ(failure.error_number, ENOENT);
  expect_no_descendants();
  EXPECT(!stage.state_exists());
}

void fails_when_a_pid_is_taken() {
  Stage stage;
  TinyPlan plan = tiny_plan({});
  stage.add_undo(plan.request);
  plan.plan().tasks[plan.child].set_tid = {1};
  CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()});
  core.send(ToCoreKind::execute, encode(plan.request));
  const auto reply = core.receive();
  expect_kind(reply, FromCoreKind::failed);
  EXPECT_EQ(decode_failure(reply->body).result, -EEXIST);
  EXPECT_EQ(decode_failure(reply->body).op, "clone_process");
  expect_no_descendants();
}

void refuses_truncated_pages() {
  Stage stage;
  stage.images.write("pages-1.img", pages().substr(0, 8192 + 100));
  TinyPlan plan = tiny_plan({});
  stage.add_undo(plan.request);
  CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()});
  core.send(ToCoreKind::execute, encode(plan.request));
  const auto reply = core.receive();
  expect_kind(reply, FromCoreKind::failed);
  EXPECT_EQ(decode_failure(reply->body).reason, "truncated");
  expect_no_descendants();
  EXPECT(!stage.state_exists());
}

// In a user namespace, with ids mapped, and in cgroups of its own.
void restores_into_a_user_namespace_and_cgroups() {
  Stage stage;
  TinyPlan plan = tiny_plan({});
  plan.plan().tasks[plan.root].clone_flags |= CLONE_NEWUSER;
  plan.request.uid_map = plan.request.gid_map = {{0, 100000, 65536}};
  // PR_SET_MM_MAP with an exe wants capabilities in the user namespace, which the root has.
  std::vector<std::string> cgroups;
  for (const std::string parent : {"/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"}) {
    const std::string cgroup = parent + "/stasis-test-" + std::to_string(::getpid());
    if (::access((parent + "/cgroup.procs").c_str(), F_OK) < 0 || ::mkdir(cgroup.c_str(), 0755) < 0) continue;
    cgroups.push_back(cgroup);
    if (::access((cgroup + "/cgroup.events").c_str(), F_OK) == 0) {
      plan.request.cgroup2_directory = cgroup;
    } else {
      plan.request.cgroup_tasks_files.push_back(cgroup + "/tasks");
    }
    plan.request.undo.push_back({UndoAction::Kind::remove_cgroup, cgroup});
  }
  EXPECT(!cgroups.empty());
  CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()});
  core.send(ToCoreKind::execute, encode(plan.request));
  const auto parked = core.receive();
  expect_kind(parked, FromCoreKind::parked);
  const std::string proc = "/proc/" + std::to_string(root_pid_of(*parked));
  UniqueFd uid_map(::open((proc + "/uid_map").c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT(read_until_end(uid_map.borrow(), 4096).find("100000") != std::string::npos);
  for (const std::string& cgroup : cgroups) {
    UniqueFd procs(::open((cgroup + "/cgroup.procs").c_str(), O_RDONLY | O_CLOEXEC));
    const std::string members = read_until_end(procs.borrow(), 4096);
    EXPECT_EQ(std::count(members.begin(), members.end(), '\n'), 2);  // root and child
  }
  core.send(ToCoreKind::abort, "");
  expect_kind(core.receive(), FromCoreKind::rolled_back);
  expect_no_descendants();
  for (const std::string& cgroup : cgroups) EXPECT(::access(cgroup.c_str(), F_OK) < 0);
}

}  // namespace

int main(int argc, char** argv) {
  return run_cases(
      {
          {"restores a tree into a pid namespace", restores_into_a_pid_namespace},
          {"restores a tree without namespaces", restores_without_namespaces},
          {"restores a child whose parent has left", restores_with_a_helper},
          {"restores a child whose parent has left, without namespaces", restores_with_a_helper_without_namespaces},
          {"restores a zombie", restores_a_zombie},
          {"leaves a stopped process stopped", leaves_a_stopped_process_stopped},
          {"restarts interrupted system calls", restarts_an_interrupted_call},
          {"restores into a user namespace and cgroups", restores_into_a_user_namespace_and_cgroups},
          {"takes everything back on abort", aborts_when_parked},
          {"takes everything back when the other side dies", rolls_back_when_the_other_side_dies},
          {"fails when a parked task is killed", fails_when_a_parked_task_is_killed},
          {"names the step that fails", names_the_step_that_fails},
          {"fails when a pid is taken", fails_when_a_pid_is_taken},
          {"refuses truncated page files", refuses_truncated_pages},
      },
      argc, argv);
}
