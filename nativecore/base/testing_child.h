// A child process of a test, and memory that both see.
#pragma once

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <new>
#include <string>

#include "base/deadline.h"
#include "base/testing.h"

namespace stasis::testing {

// `what` says in the failure what did not become true.
template <typename Condition>
void await(Condition condition, const std::string& what) {
  const Deadline deadline = Deadline::in_ms(20'000);
  while (!condition()) {
    if (deadline.expired()) throw Failed(what);
    ::sched_yield();
  }
}

// `Shared` is of atomics and plain numbers, and zero at first.
template <typename Shared>
class SharingChild {
 public:
  // `main` is called in the child; when it returns, the child waits to be killed.
  template <typename Main>
  explicit SharingChild(Main main) {
    void* const place = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (place == MAP_FAILED) throw Failed("mmap");
    shared_ = new (place) Shared{};
    pid_ = ::fork();
    if (pid_ < 0) throw Failed("fork");
    if (pid_ > 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    main(*shared_);
    for (;;) ::pause();
  }
  ~SharingChild() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, __WALL);
    }
    ::munmap(shared_, sizeof(Shared));
  }
  SharingChild(const SharingChild&) = delete;
  SharingChild& operator=(const SharingChild&) = delete;

  pid_t pid() const { return pid_; }
  Shared& shared() const { return *shared_; }
  // It has ended, and been waited for.
  void forget() { pid_ = -1; }

 private:
  Shared* shared_ = nullptr;
  pid_t pid_ = -1;
};

}  // namespace stasis::testing
