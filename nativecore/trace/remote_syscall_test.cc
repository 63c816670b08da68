// Freezing and calling into a child that sleeps.
#include "trace/remote_syscall.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

#include "base/native_error.h"
#include "base/testing_child.h"
#include "trace/thread_state.h"

namespace stasis::testing {
namespace {

// Sleeps for 300 ms once, tells how that ended, then waits to be killed.
class Sleeper {
 public:
  Sleeper() : child_(sleep) {
    await([this] { return child_.shared().sleeping && stat_state(ProcDir::open(pid()).read("stat")) == 'S'; },
          "the child does not sleep");
  }
  pid_t pid() const { return child_.pid(); }
  int result() const {
    await([this] { return child_.shared().done.load(); }, "the child does not wake up");
    return child_.shared().result;
  }

 private:
  struct Told {
    std::atomic<int> sleeping;
    std::atomic<int> done;
    std::atomic<int> result;
  };

  static void sleep(Told& told) {
    const timespec time{0, 300'000'000};
    told.sleeping = 1;
    told.result = ::nanosleep(&time, nullptr);
    told.done = 1;
  }

  SharingChild<Told> child_;
};

FrozenTree freeze(pid_t pid) {
  return FrozenTree::freeze({.root_host_pid = pid,
                             .root_start_ticks = 0,
                             .deadline = Deadline::in_ms(5000),
                             .after_interrupting = {},
                             .before_detaching = {},
                             .aborted = {}});
}

void a_remote_system_call_leaves_the_thread_as_it_was() {
  Sleeper sleeper;
  {
    FrozenTree tree = freeze(sleeper.pid());
    TracedThread& thread = tree.root().leader();
    const std::string maps = tree.root().proc.read("maps");
    const CallSite instruction{find_syscall_instruction(tree.root(), parse_maps(maps)), 0};
    const InterruptedContext before = read_interrupted_context(thread.host_tid);
    // Waits behind our mask while the calls run, and is there afterwards.
    ::kill(sleeper.pid(), SIGCHLD);
    for (int i = 0; i < 100; ++i) {
      EXPECT_EQ(run_remote_syscall(tree, thread, before, instruction, SYS_getpid, {}, Deadline::in_ms(1000)),
                sleeper.pid());
    }
    EXPECT_EQ(run_remote_syscall(tree, thread, before, instruction, SYS_close, {12345}, Deadline::in_ms(1000)), -9);
    const InterruptedContext after = read_interrupted_context(thread.host_tid);
    EXPECT(std::memcmp(&before.registers, &after.registers, sizeof before.registers) == 0);
    EXPECT_EQ(before.signal_mask, after.signal_mask);
    EXPECT_EQ(maps, tree.root().proc.read("maps"));
  }
  EXPECT_EQ(sleeper.result(), 0);
}

void thawing_restarts_an_interrupted_sleep() {
  Sleeper sleeper;
  for (int i = 0; i < 20; ++i) freeze(sleeper.pid()).thaw();
  EXPECT_EQ(sleeper.result(), 0);
}

void a_wrong_start_time_is_another_process() {
  Sleeper sleeper;
  try {
    FrozenTree::freeze({.root_host_pid = sleeper.pid(),
                        .root_start_ticks = 1,
                        .deadline = Deadline::in_ms(1000),
                        .after_interrupting = {},
                        .before_detaching = {},
                        .aborted = {}});
  } catch (const NativeError& error) {
    EXPECT_EQ(error.reason, "task_gone");
    EXPECT_EQ(status_number(ProcDir::open(sleeper.pid()).read("status"), "TracerPid", -1), 0);
    return;
  }
  throw Failed("it was frozen");
}

}  // namespace
}  // namespace stasis::testing

int main(int argc, char** argv) {
  stasis::prepare_signal_waiting();
  using namespace stasis::testing;
  return run_cases(
      {
          {"a remote system call leaves the thread as it was", a_remote_system_call_leaves_the_thread_as_it_was},
          {"thawing restarts an interrupted sleep", thawing_restarts_an_interrupted_sleep},
          {"a wrong start time is another process", a_wrong_start_time_is_another_process},
      },
      argc, argv);
}
