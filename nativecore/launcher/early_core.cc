#include "launcher/early_core.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <vector>

extern char** environ;

namespace stasis {
namespace {

// As base/control_channel.h has them.
constexpr int kControlDescriptor = 3;
constexpr int kImagesDescriptor = 4;

// As node would start it: of the caller's it has working signals only.
[[noreturn]] void become_core(const std::string& core, const char* subcommand, int socket) {
  for (int signal = 1; signal < NSIG; ++signal) ::signal(signal, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::setsid();  // a terminal's signals are for node; the core hears of them through end of file
  // The number of the images is taken until they come: nothing else may get it.
  const int null = ::open("/dev/null", O_RDWR);
  if (null < 0 || ::chdir("/") < 0) ::_exit(1);
  const int own = ::fcntl(socket, F_DUPFD, kImagesDescriptor + 1);
  for (int standard : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO, kImagesDescriptor}) ::dup2(null, standard);
  if (own < 0 || ::dup2(own, kControlDescriptor) < 0) ::_exit(1);
  ::close_range(kImagesDescriptor + 1, ~0u, 0);
  // The target must not find our caller's secrets in /proc/PID/environ; orders of fault tests are none.
  std::vector<char*> environment;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (std::strncmp(*variable, "STASIS_FAULT_", 13) == 0) environment.push_back(*variable);
  }
  environment.push_back(nullptr);
  char* const arguments[] = {const_cast<char*>(core.c_str()), const_cast<char*>(subcommand), const_cast<char*>("early"),
                             nullptr};
  ::execve(core.c_str(), arguments, environment.data());
  ::_exit(127);
}

}  // namespace

std::string start_core_early(const std::string& core, const char* subcommand) {
  int ends[2];
  if (::access(core.c_str(), X_OK) < 0 || ::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0) return {};
  // Where the caller ignores it, the kernel would not keep for node how the core died.
  ::signal(SIGCHLD, SIG_DFL);
  // Above those of the standard streams, which our caller may have closed.
  const int own = ::fcntl(ends[0], F_DUPFD, STDERR_FILENO + 1);
  ::close(ends[0]);
  const pid_t pid = own < 0 ? -1 : ::fork();
  if (pid == 0) become_core(core, subcommand, ends[1]);
  ::close(ends[1]);
  if (pid > 0)
    return "STASIS_EARLY_CORE=" + std::string(subcommand) + ":" + std::to_string(own) + ":" + std::to_string(pid);
  ::close(own);
  return {};
}

}  // namespace stasis
