// The placeholder: keeps a scope of systemd occupied until restored tasks are
// in it. It ends with its input, which only the process that started it has.
//
// Race, and what closes it:
//   1. We are killed when systemd has been asked to start the scope with the
//      placeholder in it, and has not done so yet: it dies before it is moved.
//   2. The kernel moves a dead process without complaint and to no effect
//      (cgroup_migrate_add_task skips PF_EXITING): the scope is started empty,
//      never becomes empty, and stays (systemd 252, measured with a zombie).
// Between the words kAsked and kAnswered a placeholder therefore ends only when it
// has been moved.
#pragma once

namespace stasis {

// Returns the exit status.
int run_placeholder_command();

}  // namespace stasis
