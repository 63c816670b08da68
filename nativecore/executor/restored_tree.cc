#include "executor/restored_tree.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>

#include "base/sys.h"
#include "proc/proc_dir.h"

namespace stasis {
namespace {

constexpr uint64_t kKillTimeoutMs = 30'000;

// Linux 6.11, linux/nsfs.h: a pid of that namespace in the caller's namespace.
constexpr unsigned long kNsGetPidFromPidns = _IOR(0xb7, 0x6, int);

// Turns pids of one task's pid namespace into ours.
class PidTranslation {
 public:
  explicit PidTranslation(pid_t host_pid)
      : host_pid_(host_pid),
        proc_(ProcDir::open(host_pid)),
        namespace_(sys::openat(proc_.borrow(), "ns/pid", O_RDONLY)) {}

  // A thread or process whose number in that namespace is `inner`.
  pid_t to_host(pid_t inner, bool thread) const {
    const int result = ::ioctl(namespace_.borrow(), kNsGetPidFromPidns, inner);
    if (result > 0) return result;
    if (errno == ESRCH)
      throw NativeError("task_gone", "a task has gone while it was being restored").with_pid(host_pid_);
    return thread ? find_thread(inner) : find_child(inner);
  }

 private:
  // Kernels before 6.11: compare the NSpid lines.
  static bool has_pid_at(const std::string& status, size_t level, pid_t inner) {
    const std::vector<int32_t> pids = status_numbers(status, "NSpid");
    return level < pids.size() && pids[level] == inner;
  }
  size_t level() const {
    const std::string own_status = proc_.read("status");
    return status_numbers(own_status, "NSpid").size() - 1;
  }

  pid_t find_thread(pid_t inner) const {
    const size_t depth = level();
    for (const int32_t tid : proc_.numbers("task")) {
      const auto status = proc_.try_read(("task/" + std::to_string(tid) + "/status").c_str());
      if (status.ok() && has_pid_at(status.value, depth, inner)) return tid;
    }
    throw NativeError("task_gone", "a thread has gone while it was being restored").with_pid(host_pid_);
  }

  pid_t find_child(pid_t inner) const {
    const size_t depth = level();
    for (const pid_t pid : process_ids()) {
      const auto status = sys::try_read_file(AT_FDCWD, ("/proc/" + std::to_string(pid) + "/status").c_str());
      if (!status.ok() || status_number(status.value, "PPid", -1) != host_pid_ ||
          !has_pid_at(status.value, depth, inner))
        continue;
      return pid;
    }
    throw NativeError("task_gone", "a process has gone while it was being restored").with_pid(host_pid_);
  }

  pid_t host_pid_;
  ProcDir proc_;
  UniqueFd namespace_;
};

[[noreturn]] void enter_interpreter(uint64_t entry, uint64_t header, uint64_t stack_top) {
  asm volatile("jmp *%0" : : "r"(entry), "D"(header), "S"(0ul), "d"(stack_top) : "memory");
  __builtin_unreachable();
}

// One descriptor per process of the tree, and there may be many. The root must
// not inherit this.
void raise_descriptor_limit() {
  rlimit limit;
  if (::getrlimit(RLIMIT_NOFILE, &limit) < 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

RestoredTree::RestoredTree(const Plan& plan, const Hole& hole) : plan_(plan), hole_(hole), tasks_(plan.tasks.size()) {}

RestoredTree::~RestoredTree() {
  if (!released_) kill_all();
}

void RestoredTree::clone_root(const std::string& cgroup2_directory, bool sibling) {
  STASIS_CONTEXT("creating the root task");
  UniqueFd cgroup;
  int pidfd = -1;
  clone_args args{};
  args.flags = plan_.tasks[0].clone_flags | CLONE_PIDFD;
  args.pidfd = reinterpret_cast<uint64_t>(&pidfd);
  args.exit_signal = SIGCHLD;
  if (sibling) {
    args.flags |= CLONE_PARENT;
    args.exit_signal = 0;  // clone3 wants none: it is the one that we have ourselves
  }
  args.set_tid = hole_.task(0).set_tid;
  args.set_tid_size = hole_.task(0).set_tid_count;
  if (!cgroup2_directory.empty()) {
    cgroup = sys::openat(AT_FDCWD, cgroup2_directory.c_str(), O_RDONLY | O_DIRECTORY);
    args.flags |= CLONE_INTO_CGROUP;
    args.cgroup = static_cast<uint64_t>(cgroup.borrow());
  }
  const uint64_t entry = hole_.entry(), header = hole_.address();
  const uint64_t stack_top = hole_.task(0).stack_base + kInterpreterStackBytes;
  // Without a stack of its own: the child is a copy of us, on a copy of our
  // stack, and leaves both at once.
  const auto cloned = sys::try_syscall(SYS_clone3, reinterpret_cast<uint64_t>(&args), sizeof args);
  if (cloned.ok() && cloned.value == 0) enter_interpreter(entry, header, stack_top);
  if (!cloned.ok()) {
    throw NativeError::from_errno("clone3", cloned.error)
        .with_position({0, kPhasePrologue, 0, "clone3", -cloned.error});
  }
  tasks_[0].host_pid = static_cast<pid_t>(cloned.value);
  tasks_[0].pidfd = UniqueFd(pidfd);
  raise_descriptor_limit();
}

void RestoredTree::locate_processes() {
  for (uint32_t parent = 0; parent < tasks_.size(); ++parent) {
    std::optional<PidTranslation> translation;
    for (uint32_t index = parent + 1; index < tasks_.size(); ++index) {
      if (plan_.tasks[index].parent != parent || !plan_.tasks[index].has_own_process()) continue;
      STASIS_CONTEXT("finding a restored process", tasks_[parent].host_pid);
      if (!translation) translation.emplace(tasks_[parent].host_pid);
      tasks_[index].host_pid = translation->to_host(hole_.task(index).pid, false);
      tasks_[index].pidfd = sys::pidfd_open(tasks_[index].host_pid);
    }
  }
}

void RestoredTree::locate_threads() {
  std::optional<PidTranslation> translation;
  uint32_t translated = 0;
  for (uint32_t index = 0; index < tasks_.size(); ++index) {
    if (plan_.tasks[index].kind != TaskKind::thread) continue;
    const uint32_t process = plan_.tasks[index].parent;
    STASIS_CONTEXT("finding a restored thread", tasks_[process].host_pid);
    if (!translation || translated != process) translation.emplace(tasks_[process].host_pid);
    translated = process;
    tasks_[index].host_pid = translation->to_host(hole_.task(index).pid, true);
  }
}

uint64_t RestoredTree::root_start_ticks() const {
  return stat_start_ticks(ProcDir::open(tasks_[0].host_pid).read("stat"));
}

void RestoredTree::check_alive() const {
  for (uint32_t index = 0; index < tasks_.size(); ++index) {
    if (plan_.tasks[index].kind != TaskKind::process || !tasks_[index].pidfd.valid()) continue;
    pollfd exited{tasks_[index].pidfd.borrow(), POLLIN, 0};
    if (::poll(&exited, 1, 0) <= 0) continue;
    const HoleTask& task = hole_.task(index);
    throw NativeError("task_gone", "a task died while it was being restored")
        .with_pid(tasks_[index].host_pid)
        .with_position({index, task.progress_phase, task.progress_step, "", 0});
  }
}

void RestoredTree::await_zombies(uint32_t phase, const Deadline& deadline) const {
  for (uint32_t index = 0; index < tasks_.size(); ++index) {
    if (plan_.tasks[index].kind != TaskKind::zombie || hole_.task(index).last_phase != phase) continue;
    pollfd exited{tasks_[index].pidfd.borrow(), POLLIN, 0};
    while (::poll(&exited, 1, deadline.remaining_ms()) <= 0) deadline.check("waiting for a zombie to exit");
  }
}

void RestoredTree::kill_all() noexcept {
  hole_.fail_all();
  // The root first: in a pid namespace of its own it takes the others along.
  for (const Located& task : tasks_) {
    if (task.pidfd.valid()) sys::try_pidfd_send_signal(task.pidfd.borrow(), SIGKILL);
  }
  const Deadline deadline = Deadline::in_ms(kKillTimeoutMs);
  for (const Located& task : tasks_) {
    if (!task.pidfd.valid()) continue;
    // A tracee's exit is complete only when we, its tracer, have taken note.
    pollfd exited{task.pidfd.borrow(), POLLIN, 0};
    while (!deadline.expired()) {
      int status;
      while (sys::try_waitpid(-1, &status, WNOHANG).value > 0) {
      }
      if (::poll(&exited, 1, 20) > 0) break;
    }
  }
  int status;
  while (sys::try_waitpid(-1, &status, WNOHANG).value > 0) {
  }
  tasks_.clear();
}

}  // namespace stasis
