// A core that is killed or fails at any step of a restore, or at any moment of one, leaves nothing behind.
#include "executor/execute_steps.h"
#include "executor/testing_restore.h"

using namespace stasis;
using namespace stasis::testing;

namespace {

// Kills or fails the core before every step; nothing may be left.
void survive_faults(const char* variable, const TinyOptions& options) {
  const bool kills = std::strcmp(variable, "STASIS_FAULT_STEP") == 0;
  for (size_t number = 1; number <= kExecuteSteps.size(); ++number) {
    Stage stage;
    TinyPlan plan = tiny_plan(options);
    stage.add_undo(plan.request);
    CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()}, {{variable, std::to_string(number)}});
    stage.out_write.reset();
    core.send(ToCoreKind::execute, encode(plan.request));
    auto reply = core.receive();
    if (reply && reply->kind == FromCoreKind::parked) {
      core.send(ToCoreKind::release, "");
      reply = core.receive();
    }
    const std::string at = std::string(" at step ") + kExecuteSteps[number - 1];
    if (kills && reply) throw Failed("the core was not killed" + at);
    if (!kills && (!reply || reply->kind != FromCoreKind::failed || decode_failure(reply->body).reason != "fault")) {
      throw Failed("the core did not fail" + at);
    }
    try {
      expect_no_descendants();
    } catch (const Failed& failed) {
      throw Failed(failed.what() + at);
    }
    if (stage.state_exists()) throw Failed("the state directory is left" + at);
  }
}

void kill_in_a_namespace() { survive_faults("STASIS_FAULT_STEP", {.helper = true, .zombie = true}); }
void kill_without_namespaces() {
  survive_faults("STASIS_FAULT_STEP", {.pid_namespace = false, .helper = true, .zombie = true});
}
void fail_in_a_namespace() { survive_faults("STASIS_FAULT_FAIL", {.helper = true, .zombie = true}); }
void fail_without_namespaces() {
  survive_faults("STASIS_FAULT_FAIL", {.pid_namespace = false, .helper = true, .zombie = true});
}

// What the steps do not hit: any instant of a restore, the middle of a system call included.
void kill_at_random() {
  unsigned seed = static_cast<unsigned>(monotonic_now_ns());
  int released = 0;
  for (int round = 0; round < 100; ++round) {
    Stage stage;
    TinyPlan plan = tiny_plan({.pid_namespace = round % 2 == 0, .helper = true, .zombie = true});
    stage.add_undo(plan.request);
    CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()});
    stage.out_write.reset();
    const pid_t killer = ::fork();
    if (killer == 0) {
      const timespec delay{0, static_cast<long>(rand_r(&seed) % 4'000'000)};
      ::nanosleep(&delay, nullptr);
      ::kill(core.pid(), SIGKILL);
      ::_exit(0);
    }
    rand_r(&seed);
    core.send(ToCoreKind::execute, encode(plan.request));
    core.send(ToCoreKind::release, "");
    bool committed = false;
    while (const auto reply = core.receive()) committed = committed || reply->kind == FromCoreKind::released;
    released += committed;
    expect_no_descendants();
    // Killed after the commit and before it could say so, it has let the tree go as well.
    const std::string output = read_until_end(stage.out_read.borrow(), 20);
    if (committed || output.size() == 20) {
      EXPECT_EQ(sorted_lines(output), "chld done root thrd ");
    }
    EXPECT(stage.state_exists() || !committed);
  }
  std::printf("        %d of 100 were faster than the killer\n", released);
}

}  // namespace

int main(int argc, char** argv) {
  return run_cases(
      {
          {"leaves nothing when killed at any step", kill_in_a_namespace},
          {"leaves nothing when killed at any step, without namespaces", kill_without_namespaces},
          {"leaves nothing when killed at random moments", kill_at_random},
          {"leaves nothing when failing at any step", fail_in_a_namespace},
          {"leaves nothing when failing at any step, without namespaces", fail_without_namespaces},
      },
      argc, argv);
}
