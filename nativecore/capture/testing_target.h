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
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "base/testing_child.h"

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

  explicit Target(int extra_threads = 0)
      : child_([this, extra_threads](Shared& shared) {
          shared_ = &shared;
          main(extra_threads);
        }) {
    shared_ = &child_.shared();
    descriptors_.close_connection();
    await([&] { return shared_->ready >= kThreads + extra_threads; }, "the threads of the target do not start");
  }

  pid_t pid() const { return child_.pid(); }
  void forget() { child_.forget(); }

  // Every thread finishes another round, correctly.
  void expect_alive() {
    uint64_t before[kThreads];
    for (int i = 0; i < kThreads; ++i) before[i] = shared_->rounds[i];
    for (int i = 0; i < kThreads; ++i) {
      await([&] { return shared_->rounds[i] >= before[i] + 2; },
            "thread " + std::to_string(i) + " of the target does not go on");
    }
    if (shared_->failures) throw Failed(std::string("the target says: ") + shared_->message);
  }

  static constexpr int kThreads = 8;

 private:
  // Made before the child, who inherits them.
  struct Descriptors {
    Descriptors() {
      if (::pipe2(silent_pipe, O_CLOEXEC) < 0) throw Failed("pipe2");
      connect();
    }
    ~Descriptors() {
      ::close(silent_pipe[0]);
      ::close(silent_pipe[1]);
      close_connection();
    }
    Descriptors(const Descriptors&) = delete;
    Descriptors& operator=(const Descriptors&) = delete;

    // Both ends become the child's alone, as soon as it has been forked.
    void close_connection() {
      for (int& fd : connection) {
        if (fd >= 0) ::close(fd);
        fd = -1;
      }
    }

    int silent_pipe[2] = {-1, -1};
    int connection[2] = {-1, -1};

   private:
    void connect() {
      const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      socklen_t length = sizeof address;
      auto* const name = reinterpret_cast<sockaddr*>(&address);
      if (::bind(listener, name, length) < 0 || ::listen(listener, 1) < 0 || ::getsockname(listener, name, &length) < 0)
        throw Failed("cannot listen");
      connection[0] = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      if (::connect(connection[0], name, length) < 0) throw Failed("cannot connect");
      connection[1] = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
      ::close(listener);
    }
  };

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
    pollfd entry{descriptors_.silent_pipe[0], POLLIN, 0};
    if (::poll(&entry, 1, 20) != 0) fail("poll", 2);
  }
  // A read that blocks until its own timer thread writes is too much machinery: a second poll with a mask.
  void check_read() {
    pollfd entry{descriptors_.silent_pipe[0], POLLIN, 0};
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
      if (::send(descriptors_.connection[from], sent, sizeof sent, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof sent))
        fail("send", 7);
      std::memset(received, 0, sizeof received);
      if (::recv(descriptors_.connection[1 - from], received, sizeof received, MSG_WAITALL) !=
          static_cast<ssize_t>(sizeof received))
        fail("recv", 7);
      if (std::memcmp(sent, received, sizeof sent) != 0) fail("TCP data changed", 7);
    }
    const timespec pause{0, 1'000'000};
    ::nanosleep(&pause, nullptr);
  }
  unsigned next_byte_ = 0;
  Shared* shared_ = nullptr;
  Descriptors descriptors_;
  SharingChild<Shared> child_;
};

}  // namespace stasis::testing
