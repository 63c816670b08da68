// The whole command against targets that check themselves.

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <filesystem>

#include "base/fault_point.h"
#include "base/native_error.h"
#include "base/testing_child.h"
#include "capture/capture_steps.h"
#include "capture/testing_core.h"
#include "capture/testing_target.h"
#include "proc/proc_dir.h"

namespace stasis::testing {
namespace {

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
                     std::string(status_field(status, "SigIgn")) + " traced " +
                     std::string(status_field(status, "TracerPid")) + "\n";
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
    const std::string name = description.name;
    if (name == "killed" || name == "kill" || name == "hold" || is_ending_step(name)) continue;
    if (name.starts_with("twin_")) continue;  // too small for one: twin_test.cc
    if (is_tracking_step(name)) continue;
    Target target;
    const Outside before = look_at(target.pid());
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
    // The next capture works, and takes away what the dead core has left.
    Core second(images.path());
    second.request_capture(target.pid(), true);
    second.expect(FromCoreKind::captured);
    second.expect(FromCoreKind::pages_written);
    second.expect(FromCoreKind::thawed);
    second.wait();
    target.expect_alive();
    if (before.maps != look_at(target.pid()).maps)
      throw Failed("after death at " + name + " and another capture, maps differ");
  }
}

void target_is_untouched_after_a_failure_at_every_step() {
  const ImagesDirectory images;
  for (size_t step = 1; step <= kCaptureSteps.size(); ++step) {
    const std::string name = kCaptureSteps[step - 1].name;
    if (name == "killed" || name == "kill" || name == "hold" || name == "thawed") continue;
    if (name.starts_with("twin_") || is_tracking_step(name) || is_ending_step(name)) continue;
    // Nothing can fail there: a made-up failure would lose the call's result.
    if (name == "remote_call_done") continue;
    Target target;
    const Outside before = look_at(target.pid());
    Core core(images.path(), nullptr, std::to_string(step).c_str());
    core.request_capture(target.pid(), true);
    std::optional<FromCoreMessage> message = core.receive();
    while (message && message->kind != FromCoreKind::failed) message = core.receive();
    if (!message) throw Failed("step " + name + " did not fail");
    const std::string failure = Core::failure_text(message->body);
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

// A tree with connections is about to be killed; `fault`: what happens to the core at this step.
int end_with_fault(const Target& target, const std::string& name, bool dies) {
  const ImagesDirectory images;
  size_t step = 1;
  while (kCaptureSteps[step - 1].name != name) ++step;
  const std::string number = std::to_string(step);
  Core core(images.path(), dies ? number.c_str() : nullptr, dies ? nullptr : number.c_str());
  core.request_capture(target.pid(), false);
  core.expect(FromCoreKind::captured);
  core.expect(FromCoreKind::pages_written);
  core.send(3, "");
  if (!dies) core.expect(FromCoreKind::failed);
  return core.wait();
}

void connections_survive_what_comes_before_the_end() {
  for (const char* name : {"connections_silenced", "end_announced"}) {
    Target target;
    EXPECT_EQ(WEXITSTATUS(end_with_fault(target, name, false)), 1);
    target.expect_alive();
  }
  Target target;
  EXPECT(WIFSIGNALED(end_with_fault(target, "connections_silenced", true)));
  target.expect_alive();
}

void the_guard_ends_what_was_to_end() {
  Target target;
  EXPECT(WIFSIGNALED(end_with_fault(target, "end_announced", true)));
  int status = 0;
  EXPECT_EQ(::waitpid(target.pid(), &status, 0), target.pid());
  EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  target.forget();
}

struct SignalCounts {
  std::atomic<int> handled, disorder, ready;
};
SignalCounts* of_handler = nullptr;

// Real-time signals queue: each one sent must be handled once, in order.
void loses_no_signal() {
  const ImagesDirectory images;
  const SharingChild<SignalCounts> target([](SignalCounts& shared) {
    of_handler = &shared;
    struct sigaction action {};
    action.sa_sigaction = [](int, siginfo_t* info, void*) {
      if (info->si_value.sival_int != of_handler->handled++) ++of_handler->disorder;
    };
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    ::sigaction(SIGRTMIN + 1, &action, nullptr);
    shared.ready = 1;
  });
  SignalCounts& counts = target.shared();
  await([&] { return counts.ready.load(); }, "the target is not ready");
  int sent = 0;
  for (int round = 0; round < 10; ++round) {
    Core core(images.path());
    core.request_capture(target.pid(), true);
    // Sent all through the capture: queued before, during and after each stop.
    for (int i = 0; i < 50; ++i) {
      const sigval value{.sival_int = sent++};
      EXPECT_EQ(::sigqueue(target.pid(), SIGRTMIN + 1, value), 0);
      const timespec pause{0, 50'000};
      ::nanosleep(&pause, nullptr);
    }
    core.expect(FromCoreKind::captured);
    core.expect(FromCoreKind::pages_written);
    core.expect(FromCoreKind::thawed);
    core.wait();
  }
  await([&] { return counts.handled >= sent; }, "a signal is lost");
  EXPECT_EQ(counts.handled.load(), sent);
  EXPECT_EQ(counts.disorder.load(), 0);
}

struct EarlyCore {
  pid_t pid;
  UniqueFd socket;
};

EarlyCore start_early() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) throw Failed("socketpair");
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::dup2(ends[1], kControlDescriptor);
    ::syscall(SYS_close_range, unsigned{kImagesDescriptor}, ~0u, 0u);
    ::_exit(run_capture_command(true));
  }
  ::close(ends[1]);
  return {pid, UniqueFd(ends[0])};
}

// Started by the launcher, before node knows whether it needs one.
void ends_early_where_nobody_has_use_for_it() {
  EarlyCore core = start_early();
  core.socket.reset();
  int status = -1;
  ::waitpid(core.pid, &status, 0);
  EXPECT_EQ(status, 0);
}

// As capture with descriptors of its own, but these come over the socket, under whatever numbers.
void captures_with_descriptors_that_come_later() {
  const ImagesDirectory images;
  Target target;
  EarlyCore early = start_early();
  const UniqueFd log(::open((images.path() + "/log").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  const UniqueFd directory(::open(images.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  pass_descriptors(early.socket.borrow(), {log.borrow(), directory.borrow()});
  Core core(early.pid, std::move(early.socket));
  core.request_capture(target.pid(), true);
  core.expect(FromCoreKind::captured);
  core.expect(FromCoreKind::pages_written);
  core.expect(FromCoreKind::thawed);
  EXPECT_EQ(core.wait(), 0);
  EXPECT(std::filesystem::exists(images.path() + "/pages-1.img"));
  target.expect_alive();
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
          {"loses no signal", loses_no_signal},
          {"leaves a stopped process stopped", leaves_a_stopped_process_stopped},
          {"ends early where nobody has use for it", ends_early_where_nobody_has_use_for_it},
          {"captures with descriptors that come later", captures_with_descriptors_that_come_later},
          {"the target survives the death of the core at every step",
           target_survives_the_death_of_the_core_at_every_step},
          {"the target is untouched after a failure at every step", target_is_untouched_after_a_failure_at_every_step},
          {"connections survive what comes before the end", connections_survive_what_comes_before_the_end},
          {"the guard ends what was to end", the_guard_ends_what_was_to_end},
      },
      argc, argv);
}
