// stasis-core: the native half. One subcommand per process: what is done to
// other processes depends on which process does it (ptrace, setns, fork).
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "capture/capture_command.h"
#include "capture/capture_steps.h"
#include "capture/memory_tracking.h"
#include "executor/execute_command.h"
#include "executor/execute_steps.h"
#include "executor/placeholder.h"
#include "program/write_image.h"

constexpr unsigned kRehearsalSeconds = 120;

int main(int argc, char** argv) {
  // Early: before node is there that has its descriptors.
  const bool early = argc == 3 && std::strcmp(argv[2], "early") == 0;
  if ((argc == 2 || early) && std::strcmp(argv[1], "capture") == 0) return stasis::run_capture_command(early);
  if ((argc == 2 || early) && std::strcmp(argv[1], "execute") == 0) return stasis::run_execute_command(early);
  if (argc > 2 && std::strcmp(argv[1], "keep") == 0) return stasis::run_keep_command(argc, argv);
  if (argc == 2 && std::strcmp(argv[1], "hold") == 0) return stasis::run_placeholder_command();
  if (argc > 3 && std::strcmp(argv[1], "program-image") == 0) return stasis::run_program_image_command(argc, argv);
  // What a program checkpoints and restores while it is rehearsed. Ends by itself where nobody is left to end it.
  if (argc == 2 && std::strcmp(argv[1], "wait") == 0) ::alarm(kRehearsalSeconds);
  while (argc == 2 && std::strcmp(argv[1], "wait") == 0) ::pause();
  if (argc == 3 && std::strcmp(argv[1], "steps") == 0 && std::strcmp(argv[2], "execute") == 0) {
    return stasis::print_execute_steps();
  }
  if (argc == 3 && std::strcmp(argv[1], "steps") == 0 && std::strcmp(argv[2], "capture") == 0) {
    stasis::print_capture_steps();
    return 0;
  }
  std::fprintf(stderr,
               "usage: stasis-core capture|execute (started by stasis, with its control socket as descriptor 3)\n");
  return 2;
}
