// A target for the tests of this folder: a child process whose threads sit in
// every kind of interruptible system call, or compute, and check themselves.
// What they find wrong is told through shared memory.
#pragma once

#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "base/deadline.h"
#include "base/testing.h"

namespace stasis::testing {

class Target {
 public:
  struct Shared {
    std::atomic<int> ready;
    std::atomic<int> stop;
    std::atomic<int> failures;
    std::atomic<uint64_t> rounds[8];
    char message[256];
  };

  explicit Target(int extra_threads = 0) {
    shared_ = static_cast<Shared*>(
        ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    if (::pipe2(silent_pipe_, O_CLOEXEC) < 0) throw Failed("pipe2");
    connect();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      main(extra_threads);
    }
    for (int& fd : connection_) {
      ::close(fd);
      fd = -1;
    }
    while (shared_->ready.load() < kThreads + extra_threads) ::sched_yield();
  }
  ~Target() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    ::close(silent_pipe_[0]);
    ::close(silent_pipe_[1]);
    for (const int fd : connection_) {
      if (fd >= 0) ::close(fd);
    }
    ::munmap(shared_, sizeof(Shared));
  }
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;

  pid_t pid() const { return pid_; }
  void forget() { pid_ = -1; }

  // Every thread finishes another round, correctly.
  void expect_alive() {
    uint64_t before[kThreads];
    for (int i = 0; i < kThreads; ++i) before[i] = shared_->rounds[i];
    const Deadline deadline = Deadline::in_ms(10'000);
    for (int i = 0; i < kThreads; ++i) {
      while (shared_->rounds[i] < before[i] + 2) {
        if (deadline.expired()) throw Failed("thread " + std::to_string(i) + " of the target does not go on");
        const timespec pause{0, 1'000'000};
        ::nanosleep(&pause, nullptr);
      }
    }
    if (shared_->failures) throw Failed(std::string("the target says: ") + shared_->message);
  }

  static constexpr int kThreads = 8;

 private:
  struct Start {
    Target* target;
    int number;
  };

  [[noreturn]] void main(int extra_threads) {
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR2);
    ::pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
    for (int i = 1; i < kThreads + extra_threads; ++i) {
      auto* start = new Start{this, i};
      pthread_t thread;
      ::pthread_create(
          &thread, nullptr,
          [](void* argument) -> void* {
            const Start* start = static_cast<Start*>(argument);
            start->target->work(start->number);
            return nullptr;
          },
          start);
    }
    work(0);
    ::_exit(0);
  }

  void fail(const char* what, int number) {
    std::snprintf(shared_->message, sizeof shared_->message, "%s (errno %d) in thread %d", what, errno, number);
    ++shared_->failures;
  }

  void work(int number) {
    ++shared_->ready;
    while (!shared_->stop) {
      errno = 0;
      switch (number) {
        case 0: check_nanosleep(); break;
        case 1: check_futex(); break;
        case 2: check_poll(); break;
        case 3: check_read(); break;
        case 4: check_vectors(); break;
        case 5: check_sigwait(); break;
        case 6: check_absolute_sleep(); break;
        case 7: check_connection(); break;
        default: ::pause(); break;
      }
      if (number < kThreads) ++shared_->rounds[number];
    }
  }

  void check_nanosleep() {
    const uint64_t start = monotonic_now_ns();
    const timespec time{0, 20'000'000};
    if (::nanosleep(&time, nullptr) != 0) fail("nanosleep", 0);
    if (monotonic_now_ns() - start < 20'000'000) fail("nanosleep too short", 0);
  }
  void check_futex() {
    int word = 0;
    const timespec time{0, 20'000'000};
    if (::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &time, nullptr, 0) == 0 || errno != ETIMEDOUT)
      fail("futex", 1);
  }
  void check_poll() {
    pollfd entry{silent_pipe_[0], POLLIN, 0};
    if (::poll(&entry, 1, 20) != 0) fail("poll", 2);
  }
  // A read that blocks until its own timer thread writes is too much machinery: a second poll with a mask.
  void check_read() {
    pollfd entry{silent_pipe_[0], POLLIN, 0};
    const timespec time{0, 20'000'000};
    sigset_t mask;
    sigfillset(&mask);
    if (::ppoll(&entry, 1, &time, &mask) != 0) fail("ppoll", 3);
    sigset_t now;
    ::pthread_sigmask(SIG_SETMASK, nullptr, &now);
    if (sigismember(&now, SIGUSR1) || !sigismember(&now, SIGUSR2)) fail("signal mask changed", 3);
  }
  // Values live in vector registers while the thread is stopped again and again.
  void check_vectors() {
    unsigned long long a = 0x0123456789abcdef, result = 0;
    __asm__ volatile(
        "movq %1, %%xmm9\n\tmovq %1, %%xmm15\n\tmov $3000000, %%ecx\n\t"
        "1: dec %%ecx\n\tjnz 1b\n\t"
        "pxor %%xmm15, %%xmm9\n\tmovq %%xmm9, %%rdx\n\tmovq %%xmm15, %0\n\tadd %%rdx, %0"
        : "=r"(result)
        : "r"(a)
        : "rcx", "rdx", "xmm9", "xmm15");
    if (result != a) fail("vector registers changed", 4);
  }
  void check_sigwait() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    const timespec time{0, 20'000'000};
    if (::sigtimedwait(&set, nullptr, &time) >= 0 || (errno != EAGAIN && errno != EINTR)) fail("sigtimedwait", 5);
  }
  void check_absolute_sleep() {
    timespec time;
    ::clock_gettime(CLOCK_MONOTONIC, &time);
    time.tv_nsec += 15'000'000;
    if (time.tv_nsec >= 1'000'000'000) {
      ++time.tv_sec;
      time.tv_nsec -= 1'000'000'000;
    }
    if (::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr) != 0) fail("clock_nanosleep", 6);
  }

  // Somebody talks to itself over TCP.
  void check_connection() {
    unsigned char sent[1000], received[sizeof sent];
    for (unsigned char& byte : sent) byte = static_cast<unsigned char>(next_byte_++);
    for (const int from : {0, 1}) {
      if (::send(connection_[from], sent, sizeof sent, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof sent))
        fail("send", 7);
      std::memset(received, 0, sizeof received);
      if (::recv(connection_[1 - from], received, sizeof received, MSG_WAITALL) !=
          static_cast<ssize_t>(sizeof received))
        fail("recv", 7);
      if (std::memcmp(sent, received, sizeof sent) != 0) fail("TCP data changed", 7);
    }
    const timespec pause{0, 1'000'000};
    ::nanosleep(&pause, nullptr);
  }
  // Both ends become the child's alone, as soon as it has been forked.
  void connect() {
    const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    auto* const name = reinterpret_cast<sockaddr*>(&address);
    if (::bind(listener, name, length) < 0 || ::listen(listener, 1) < 0 || ::getsockname(listener, name, &length) < 0)
      throw Failed("cannot listen");
    connection_[0] = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (::connect(connection_[0], name, length) < 0) throw Failed("cannot connect");
    connection_[1] = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    ::close(listener);
  }

  unsigned next_byte_ = 0;
  int connection_[2] = {-1, -1};
  Shared* shared_ = nullptr;
  int silent_pipe_[2] = {-1, -1};
  pid_t pid_ = -1;
};

}  // namespace stasis::testing
