// A program that has loaded everything waits here for its image to be written,
// and begins here when it is started from one: docs/design/0072.
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <malloc.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>

#include "base/program_image.h"
#include "binding/module.h"

extern char** environ;

namespace stasis::binding {
namespace {

program_image::ProgramStart program_start;

int standard_flags[STDERR_FILENO + 1];

// Node gives streams back as it found them: a pipe that it has written to is non-blocking, for whoever shares it. What
// it found is in the image, and not what our caller has.
void give_back_streams() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (standard_flags[fd] >= 0) ::fcntl(fd, F_SETFL, standard_flags[fd]);
  }
}

}  // namespace

// keepOwnDescriptors(): what was passed over the exec is for us, and for none of our children.
Napi::Value keep_own_descriptors(const Napi::CallbackInfo& info) {
  for (int fd = STDERR_FILENO + 1; fd < program_image::kFirstDescriptor; ++fd) ::fcntl(fd, F_SETFD, FD_CLOEXEC);
  return info.Env().Undefined();
}

// awaitStart(fd) -> { words, pid }
Napi::Value await_start(const Napi::CallbackInfo& info) {
  const int told = info[0].As<Napi::Number>().Int32Value();
  ::malloc_trim(0);
  // Those that kept the program's own numbers high.
  for (int fd = STDERR_FILENO + 1; fd < program_image::kFirstDescriptor; ++fd) {
    if (fd != told) ::close(fd);
  }
  for (int signal = 1; signal <= program_image::kSignals; ++signal) {
    ::syscall(SYS_rt_sigaction, signal, nullptr, &program_start.actions[signal - 1], sizeof(uint64_t));
  }
  program_start.program_break = static_cast<void**>(::dlsym(RTLD_DEFAULT, "__curbrk"));
  if (program_start.program_break == nullptr) throw_errno(info.Env(), "dlsym", ENOENT);
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  program_start.monotonic_ns = int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
  const uint64_t where = reinterpret_cast<uint64_t>(&program_start);
  if (::write(told, &where, sizeof where) != sizeof where) throw_errno(info.Env(), "write", errno);
  ::close(told);
  while (__atomic_load_n(&program_start.started, __ATOMIC_ACQUIRE) == 0)
    ::syscall(SYS_futex, &program_start.started, FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr, 0);

  // From here on the clock is the kernel's (program/told_in_advance.cc).
  if (void* begin = ::dlsym(RTLD_DEFAULT, "stasis_clock_begin_ns"); begin != nullptr) *static_cast<int64_t*>(begin) = 0;
  environ = program_start.environment;
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) standard_flags[fd] = ::fcntl(fd, F_GETFL);
  std::atexit(give_back_streams);
  // As node does it at its start.
  rlimit files;
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
    files.rlim_cur = files.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &files);
  }
  // What the generator of random numbers had gathered is in the image, the same for each start. OpenSSL's is node's
  // own.
  if (void* poll = ::dlsym(RTLD_DEFAULT, "RAND_poll"); poll != nullptr) reinterpret_cast<int (*)()>(poll)();
  Napi::Array words = Napi::Array::New(info.Env(), program_start.argument_count);
  for (uint32_t i = 0; i < program_start.argument_count; ++i)
    words.Set(i, Napi::String::New(info.Env(), program_start.arguments[i]));
  Napi::Object start = Napi::Object::New(info.Env());
  start.Set("words", words);
  start.Set("pid", Napi::Number::New(info.Env(), ::getpid()));
  return start;
}

}  // namespace stasis::binding
