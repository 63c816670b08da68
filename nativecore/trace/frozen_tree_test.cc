// Freezing trees that do not hold still, and waits that do not end by themselves.
#include "trace/frozen_tree.h"

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>

#include "base/native_error.h"
#include "base/testing_child.h"
#include "trace/remote_syscall.h"

namespace stasis::testing {
namespace {

class Child {
 public:
  // `main` says with its argument that it has come where it is wanted.
  explicit Child(const std::function<void(std::atomic<int>&)>& main) : child_(main) { await_other_than(0); }
  pid_t pid() const { return child_.pid(); }
  int number() const { return child_.shared(); }
  void await_other_than(int number) const {
    await([this, number] { return this->number() != number; }, "the child does not go on");
  }

 private:
  SharingChild<std::atomic<int>> child_;
};

FrozenTree freeze(pid_t pid, uint64_t deadline_ms) {
  return FrozenTree::freeze({.root_host_pid = pid,
                             .root_start_ticks = 0,
                             .deadline = Deadline::in_ms(deadline_ms),
                             .after_interrupting = {},
                             .before_detaching = {},
                             .aborted = {}});
}

void* end_at_once(void*) { return nullptr; }

void* make_short_threads(void* made) {
  for (;;) {
    pthread_t thread;
    if (::pthread_create(&thread, nullptr, end_at_once, nullptr) != 0) continue;
    ::pthread_join(thread, nullptr);
    ++*static_cast<std::atomic<int>*>(made);
  }
}

void freezes_while_threads_come_and_go() {
  const Child child([](std::atomic<int>& made) {
    for (int i = 0; i < 4; ++i) {
      pthread_t thread;
      ::pthread_create(&thread, nullptr, make_short_threads, &made);
    }
  });
  for (int round = 0; round < 100; ++round) {
    const int before = child.number();
    {
      FrozenTree tree = freeze(child.pid(), 5000);
      std::vector<pid_t> known = tree.root().host_tids();
      std::sort(known.begin(), known.end());
      EXPECT(known == tree.root().proc.numbers("task"));
      for (const TracedThread& thread : tree.root().threads) {
        EXPECT(thread.stopped);
        const std::string stat = tree.root().proc.read(("task/" + std::to_string(thread.host_tid) + "/stat").c_str());
        EXPECT_EQ(stat_state(stat), 't');
      }
    }
    child.await_other_than(before);
  }
}

// Each of its processes is a child of the last, and ends when it has one itself.
void freezes_while_processes_come_and_go() {
  const Child child([](std::atomic<int>& made) {
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);
    ::signal(SIGCHLD, SIG_IGN);
    for (;;) {
      const pid_t grandchild = ::fork();
      if (grandchild == 0) {
        if (::fork() == 0) ::_exit(0);
        ::_exit(0);
      }
      ++made;
      while (::waitpid(-1, nullptr, 0) > 0) {
      }
    }
  });
  for (int round = 0; round < 50; ++round) {
    const int before = child.number();
    {
      const FrozenTree tree = freeze(child.pid(), 5000);
      for (const auto& process : tree.processes()) {
        for (const TracedThread& thread : process->threads) EXPECT(thread.stopped);
      }
    }
    child.await_other_than(before);
  }
}

// A parent does not stop before its vfork child has left their common memory.
void gives_up_on_a_thread_that_does_not_stop() {
  const Child child([](std::atomic<int>& ready) {
    if (::vfork() == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ready = 1;
      for (;;) ::pause();
    }
  });
  try {
    freeze(child.pid(), 50);
  } catch (const NativeError& error) {
    EXPECT_EQ(error.reason, "deadline");
    return;
  }
  throw Failed("it was frozen");
}

void ends_a_system_call_that_takes_too_long() {
  const Child child([](std::atomic<int>& ready) { ready = 1; });
  FrozenTree tree = freeze(child.pid(), 5000);
  TracedThread& thread = tree.root().leader();
  const CallSite site{find_syscall_instruction(tree.root(), parse_maps(tree.root().proc.read("maps"))), 0};
  const InterruptedContext before = read_interrupted_context(thread.host_tid);
  std::string reason;
  try {
    run_remote_syscall(tree, thread, before, site, SYS_pause, {}, Deadline::in_ms(30));
  } catch (const NativeError& error) {
    reason = error.reason;
  }
  EXPECT_EQ(reason, "deadline");
  const InterruptedContext after = read_interrupted_context(thread.host_tid);
  EXPECT(std::memcmp(&before.registers, &after.registers, sizeof before.registers) == 0);
  EXPECT_EQ(before.signal_mask, after.signal_mask);
  EXPECT_EQ(run_remote_syscall(tree, thread, before, site, SYS_getpid, {}, Deadline::in_ms(5000)), child.pid());
}

void tells_of_a_thread_that_dies_in_a_system_call() {
  const Child child([](std::atomic<int>& ready) { ready = 1; });
  FrozenTree tree = freeze(child.pid(), 5000);
  TracedThread& thread = tree.root().leader();
  const CallSite site{find_syscall_instruction(tree.root(), parse_maps(tree.root().proc.read("maps"))), 0};
  std::string reason;
  try {
    run_remote_syscall(tree, thread, read_interrupted_context(thread.host_tid), site, SYS_exit, {7},
                       Deadline::in_ms(5000));
  } catch (const NativeError& error) {
    reason = error.reason;
  }
  EXPECT_EQ(reason, "task_gone");
}

}  // namespace
}  // namespace stasis::testing

int main(int argc, char** argv) {
  stasis::prepare_signal_waiting();
  using namespace stasis::testing;
  return run_cases(
      {
          {"freezes while threads come and go", freezes_while_threads_come_and_go},
          {"freezes while processes come and go", freezes_while_processes_come_and_go},
          {"gives up on a thread that does not stop", gives_up_on_a_thread_that_does_not_stop},
          {"ends a system call that takes too long", ends_a_system_call_that_takes_too_long},
          {"tells of a thread that dies in a system call", tells_of_a_thread_that_dies_in_a_system_call},
      },
      argc, argv);
}
