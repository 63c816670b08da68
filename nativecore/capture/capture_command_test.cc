// The whole command against targets that check themselves.
#include <csignal>
#include <cstdlib>
#include <filesystem>

#include "base/fault_point.h"
#include "base/native_error.h"
#include "capture/capture_steps.h"
#include "capture/testing_core.h"
#include "capture/testing_target.h"
#include "proc/proc_dir.h"

namespace stasis::testing {
namespace {

class ImagesDirectory {
 public:
  ImagesDirectory() {
    if (!::mkdtemp(path_)) throw Failed("mkdtemp");
  }
  ~ImagesDirectory() { std::filesystem::remove_all(path_); }
  std::string path() const { return path_; }

 private:
  char path_[32] = "/tmp/stasis-test-XXXXXX";
};

// What must be the same before and after.
struct Outside {
  std::string maps;
  std::string masks;
};

Outside look_at(pid_t pid) {
  const ProcDir proc = ProcDir::open(pid);
  Outside outside;
  for (const Vma& vma : parse_maps(proc.read("maps"))) {
    outside.maps += std::to_string(vma.start) + "-" + std::to_string(vma.end) + " " + vma.name + "\n";
  }
  for (const int32_t tid : proc.numbers("task")) {
    const std::string status = proc.read(("task/" + std::to_string(tid) + "/status").c_str());
    outside.masks += std::to_string(tid) + " caught " + std::string(status_field(status, "SigCgt")) + " ignored " +
                     std::string(status_field(status, "SigIgn")) + " traced " + std::string(status_field(status, "TracerPid")) + "\n";
  }
  return outside;
}

void captures_a_running_tree_that_goes_on() {
  const ImagesDirectory images;
  Target target;
  const Outside before = look_at(target.pid());
  for (int i = 0; i < 20; ++i) {
    Core core(images.path());
    core.request_capture(target.pid(), true);
    core.expect(FromCoreKind::captured);
    core.expect(FromCoreKind::pages_written);
    core.expect(FromCoreKind::thawed);
    EXPECT_EQ(core.wait(), 0);
  }
  target.expect_alive();
  const Outside after = look_at(target.pid());
  EXPECT_EQ(before.maps, after.maps);
  EXPECT_EQ(before.masks, after.masks);
}

void kills_the_tree_when_told() {
  const ImagesDirectory images;
  Target target;
  Core core(images.path());
  core.request_capture(target.pid(), false);
  core.expect(FromCoreKind::captured);
  core.expect(FromCoreKind::pages_written);
  core.send(3, "");
  core.expect(FromCoreKind::killed);
  EXPECT_EQ(core.wait(), 0);
  int status = 0;
  EXPECT_EQ(::waitpid(target.pid(), &status, 0), target.pid());
  EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  target.forget();
}

void rolls_back_when_told() {
  const ImagesDirectory images;
  Target target;
  Core core(images.path());
  core.request_capture(target.pid(), false);
  core.expect(FromCoreKind::captured);
  core.expect(FromCoreKind::pages_written);
  core.send(4, "");
  core.expect(FromCoreKind::rolled_back);
  EXPECT_EQ(core.wait(), 0);
  target.expect_alive();
}

void rolls_back_when_the_other_side_hangs_up() {
  const ImagesDirectory images;
  Target target;
  Core core(images.path());
  core.request_capture(target.pid(), false);
  core.expect(FromCoreKind::captured);
  core.expect(FromCoreKind::pages_written);
  core.hang_up();
  EXPECT_EQ(WEXITSTATUS(core.wait()), 1);
  target.expect_alive();
}

void target_survives_the_death_of_the_core_at_every_step() {
  const ImagesDirectory images;
  for (size_t step = 1; step <= kCaptureSteps.size(); ++step) {
    const CaptureStep& description = kCaptureSteps[step - 1];
    if (description.hazard) continue;
    const std::string name = description.name;
    if (name == "killed" || name == "kill" || name == "hold") continue;
    Target target;
    Core core(images.path(), std::to_string(step).c_str());
    core.request_capture(target.pid(), true);
    const int status = core.wait();
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) throw Failed("step " + name + " was not reached");
    try {
      target.expect_alive();
    } catch (const Failed& failed) {
      throw Failed("after death at " + name + ": " + failed.what());
    }
    EXPECT_EQ(status_number(ProcDir::open(target.pid()).read("status"), "TracerPid", -1), 0);
  }
}

void target_is_untouched_after_a_failure_at_every_step() {
  const ImagesDirectory images;
  for (size_t step = 1; step <= kCaptureSteps.size(); ++step) {
    const std::string name = kCaptureSteps[step - 1].name;
    if (name == "killed" || name == "kill" || name == "hold" || name == "thawed") continue;
    // Nothing can fail there: a made-up failure would lose the call's result.
    if (name == "remote_call_done") continue;
    Target target;
    const Outside before = look_at(target.pid());
    Core core(images.path(), nullptr, std::to_string(step).c_str());
    core.request_capture(target.pid(), true);
    const std::string failure = Core::failure_text(core.expect(FromCoreKind::failed));
    if (failure.find("fault") == std::string::npos) throw Failed("step " + name + ": " + failure);
    EXPECT_EQ(WEXITSTATUS(core.wait()), 1);
    try {
      target.expect_alive();
    } catch (const Failed& failed) {
      throw Failed("after failure at " + name + ": " + failed.what());
    }
    const Outside after = look_at(target.pid());
    if (before.maps != after.maps) throw Failed("maps differ after failure at " + name);
    if (before.masks != after.masks) throw Failed("masks differ after failure at " + name);
    EXPECT(std::filesystem::is_empty(images.path()));
  }
}

void leaves_a_stopped_process_stopped() {
  const ImagesDirectory images;
  Target target;
  ::kill(target.pid(), SIGSTOP);
  int status = 0;
  ::waitpid(target.pid(), &status, WUNTRACED);
  Core core(images.path());
  core.request_capture(target.pid(), true);
  core.expect(FromCoreKind::captured);
  core.expect(FromCoreKind::pages_written);
  core.expect(FromCoreKind::thawed);
  core.wait();
  EXPECT_EQ(stat_state(ProcDir::open(target.pid()).read("stat")), 'T');
  ::kill(target.pid(), SIGCONT);
  target.expect_alive();
}

}  // namespace
}  // namespace stasis::testing

int main(int argc, char** argv) {
  using namespace stasis::testing;
  return run_cases(
      {
          {"captures a running tree that goes on", captures_a_running_tree_that_goes_on},
          {"kills the tree when told", kills_the_tree_when_told},
          {"rolls back when told", rolls_back_when_told},
          {"rolls back when the other side hangs up", rolls_back_when_the_other_side_hangs_up},
          {"leaves a stopped process stopped", leaves_a_stopped_process_stopped},
          {"the target survives the death of the core at every step", target_survives_the_death_of_the_core_at_every_step},
          {"the target is untouched after a failure at every step", target_is_untouched_after_a_failure_at_every_step},
      },
      argc, argv);
}
