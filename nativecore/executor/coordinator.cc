#include "executor/coordinator.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <protozero/pbf_writer.hpp>
#include <string>

#include "base/failure_message.h"
#include "base/fault_point.h"
#include "base/log_ring.h"
#include "base/sys.h"
#include "executor/fill_memory.h"
#include "executor/undo.h"
#include "executor/validate_plan.h"

namespace stasis {
namespace {

constexpr uint64_t kDefaultDeadlineMs = 60'000;
// How long the death of a task or of TypeScript goes unnoticed during a phase.
constexpr uint64_t kWatchIntervalNs = 10'000'000;

std::string lower_case(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char letter) { return std::tolower(letter); });
  return text;
}

// Children inherit both: everything blocked keeps handlers from ever running on
// the interpreter's stacks; default dispositions are what a plan starts from.
void block_signals_and_reset_dispositions() {
  // The raw call: libc keeps two signals for itself out of the set.
  const uint64_t mask = ~uint64_t{0};
  const auto blocked =
      sys::try_syscall(SYS_rt_sigprocmask, SIG_SETMASK, reinterpret_cast<uint64_t>(&mask), 0, sizeof mask);
  if (!blocked.ok()) throw NativeError::from_errno("rt_sigprocmask", blocked.error);
  for (int signal = 1; signal <= 64; ++signal) {
    const uint64_t default_action[4] = {};
    // EINVAL for SIGKILL and SIGSTOP
    sys::try_syscall(SYS_rt_sigaction, static_cast<uint64_t>(signal), reinterpret_cast<uint64_t>(default_action), 0, 8);
  }
}

// The root is born with our rseq registration. When it unmaps our libc, the
// kernel would kill it at its next preemption.
void unregister_own_rseq() {
  if (__rseq_size == 0) return;  // libc has not registered it
  const uint64_t area = reinterpret_cast<uint64_t>(__builtin_thread_pointer()) + static_cast<uint64_t>(__rseq_offset);
  // libc registers 32 bytes whatever it says it uses, or more if the kernel has more.
  int error = 0;
  for (const uint32_t length : {32u, __rseq_size}) {
    const auto unregistered = sys::try_syscall(SYS_rseq, area, length, RSEQ_FLAG_UNREGISTER, RSEQ_SIG);
    if (unregistered.ok()) return;
    error = unregistered.error;
  }
  throw NativeError::from_errno("rseq", error).with_what("unregistering the restartable sequence of the core");
}

UniqueFd open_signal_descriptor() {
  sigset_t watched;
  ::sigemptyset(&watched);
  for (const int signal : {SIGCHLD, SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&watched, signal);
  UniqueFd signals(::signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals.valid()) throw NativeError::from_errno("signalfd", errno);
  return signals;
}

std::string id_map_text(const std::vector<IdMapEntry>& entries) {
  std::string text;
  for (const IdMapEntry& entry : entries) {
    text +=
        std::to_string(entry.inside) + " " + std::to_string(entry.outside) + " " + std::to_string(entry.count) + "\n";
  }
  return text;
}

}  // namespace

Coordinator::Coordinator(ControlChannel& channel, const ExecuteRequest& request, PhaseRecorder& timings)
    : channel_(channel),
      request_(request),
      plan_(request.plan),
      timings_(timings),
      deadline_(Deadline::in_ms(request.deadline_ms ? request.deadline_ms : kDefaultDeadlineMs)) {}

Coordinator::~Coordinator() { take_back(); }

void Coordinator::prepare() {
  timings_.enter("prepare");
  validate_request(request_);
  if (!plan_.connections.empty()) {
    connections_.emplace(plan_);
    connections_->try_early();  // a missing address is told before anything exists
  }
  block_signals_and_reset_dispositions();
  signals_ = open_signal_descriptor();
  hole_.emplace(Hole::reserve(plan_));  // before the janitor, which reaches the tasks through it
  janitor_.emplace(request_.undo, *hole_);
}

void Coordinator::open_cgroups() {
  fault_point("open_cgroups");
  STASIS_CONTEXT("opening the cgroups of the root task");
  for (const std::string& file : request_.cgroup_tasks_files)
    cgroup_files_.push_back(sys::openat(AT_FDCWD, file.c_str(), O_WRONLY));
}

void Coordinator::load_hole() {
  fault_point("load_hole");
  hole_->load(plan_, cgroup_files_);
}

void Coordinator::clone_root() {
  timings_.enter("clone");
  fault_point("unregister_rseq");
  unregister_own_rseq();
  tree_.emplace(plan_, *hole_);
  fault_point("clone_root");
  tree_->clone_root(request_.cgroup2_directory, !request_.start_fifo.empty());
  cgroup_files_.clear();
  fault_point("watch_root");
  janitor_->watch(tree_->pidfd(0));
}

void Coordinator::write_id_maps() {
  fault_point("write_id_maps");
  const std::string proc = "/proc/" + std::to_string(tree_->host_pid(0));
  if (!request_.uid_map.empty()) sys::write_file(AT_FDCWD, (proc + "/uid_map").c_str(), id_map_text(request_.uid_map));
  if (!request_.gid_map.empty()) sys::write_file(AT_FDCWD, (proc + "/gid_map").c_str(), id_map_text(request_.gid_map));
}

// By its path: the plan has no such step.
NativeError Coordinator::describe_cgroup_failure(const HoleError& error) const {
  return NativeError::from_errno("write", static_cast<int>(-error.result))
      .with_what("moving the root task into its cgroups")
      .with_pid(tree_->host_pid(0))
      .with_path(request_.cgroup_tasks_files[error.step]);
}

void Coordinator::throw_failure() const {
  if (const auto error = hole_->error()) {
    if (error->phase == kPhasePrologue && error->step < request_.cgroup_tasks_files.size())
      throw describe_cgroup_failure(*error);
    throw describe_step_failure(plan_, *error);
  }
  throw NativeError("task_gone", "a task gave up without saying why");
}

// A signal to us, or the death of a task.
void Coordinator::check_tasks() {
  signalfd_siginfo signal;
  while (::read(signals_.borrow(), &signal, sizeof signal) == sizeof signal) {
    if (signal.ssi_signo != SIGCHLD) throw NativeError("interrupted", "signal " + std::to_string(signal.ssi_signo));
  }
  int status;
  if (sys::try_waitpid(janitor_->host_pid(), &status, WNOHANG).value > 0) {
    throw NativeError("janitor_gone", "the janitor has been killed");
  }
  if (lazy_) lazy_->check_alive();
  try {
    tree_->check_alive();
  } catch (const NativeError&) {
    if (hole_->error()) throw_failure();  // it died of what it has reported
    throw;
  }
}

// The same, or abort, or end of file. Nothing else is said before `parked`.
void Coordinator::check_interrupted() {
  check_tasks();
  if (channel_.has_news()) {
    const auto message = channel_.receive();
    if (!message) throw NativeError("control_closed", "the other side of the control socket has gone");
    if (message->kind == ToCoreKind::abort) throw NativeError("aborted");
    throw NativeError("bad_request", "a message that fits no state of a restore");
  }
}

void Coordinator::run(uint32_t phase) {
  const std::string name = lower_case(phase_name(phase));
  timings_.enter(name);
  fault_point(("run_" + name).c_str());
  run_steps(phase);
}

void Coordinator::run_steps(uint32_t phase) {
  STASIS_CONTEXT("running a phase of the plan");
  if (!hole_->has_barrier(phase)) return;
  hole_->open_stage(phase);
  await_barrier(phase);
  if (phase > kPhaseTasks) tree_->await_zombies(phase, deadline_);
}

void Coordinator::await_barrier(uint32_t phase) {
  for (;;) {
    const uint32_t seen = hole_->events();
    if (hole_->has_failed()) throw_failure();
    if (hole_->is_complete(phase)) return;
    deadline_.check("waiting for the tasks to finish a phase");
    hole_->wait_for_events(seen, std::min(kWatchIntervalNs, deadline_.remaining_ns()));
    if (hole_->events() == seen) check_interrupted();
  }
}

void Coordinator::locate_processes() {
  fault_point("locate_processes");
  tree_->locate_processes();
  tree_->await_zombies(kPhaseTasks, deadline_);  // now that they have pidfds
  // In a pid namespace of its own the root takes all others along.
  if (plan_.tasks[0].clone_flags & CLONE_NEWPID) return;
  for (uint32_t index = 1; index < plan_.tasks.size(); ++index) {
    if (plan_.tasks[index].has_own_process()) janitor_->watch(tree_->pidfd(index));
  }
}

void Coordinator::fill() {
  timings_.enter("fill");
  fault_point("fill_memory");
  if (hole_->has_barrier(kPhaseFill)) hole_->open_stage(kPhaseFill);  // tasks follow what is filled
  Progress progress(channel_, "fill");
  LazyMemory later;
  later.files.resize(plan_.page_files.size());
  for (size_t file = 0; file < later.files.size(); ++file) {
    later.files[file].name = plan_.page_files[file];
    if (file < request_.page_file_digests.size()) later.files[file].digest = request_.page_file_digests[file];
  }
  FillSummary summary;
  try {
    summary = fill_memory(plan_, *hole_, *tree_, kImagesDescriptor, request_.page_file_digests, deadline_, progress,
                          request_.lazy_pages ? &later : nullptr);
  } catch (const NativeError&) {
    if (hole_->has_failed()) throw_failure();  // memory of a task that is gone cannot be filled
    throw;
  }
  log_line("filled %llu bytes through userfaultfd, %llu through /proc/PID/mem, %llu are left to the page process",
           static_cast<unsigned long long>(summary.uffd_bytes), static_cast<unsigned long long>(summary.mem_bytes),
           static_cast<unsigned long long>(summary.lazy_bytes));
  if (hole_->has_barrier(kPhaseFill)) await_barrier(kPhaseFill);
  // Now: the kernel itself may touch missing memory when threads register what they have there.
  if (!later.spaces.empty()) lazy_.emplace(std::move(later), tree_->pidfd(0));
}

void Coordinator::locate_threads() {
  fault_point("locate_threads");
  tree_->locate_threads();
}

void Coordinator::seize_threads() {
  timings_.enter("seize");
  fault_point("seize_threads");
  threads_.emplace(plan_, *hole_, *tree_);
  threads_->seize();
}

void Coordinator::send_parked() {
  timings_.finish();
  if (!request_.start_fifo.empty()) {
    fault_point("make_door");
    door_.emplace(request_.start_fifo);  // before the state file, which without it would say that the container runs
  }
  fault_point("send_parked");
  std::string body = encode_timings(timings_.phases(), 3);
  protozero::pbf_writer writer(body);
  writer.add_int32(1, tree_->host_pid(0));
  writer.add_uint64(2, tree_->root_start_ticks());
  for (const std::string& line : take_log_lines()) writer.add_string(4, line);
  if (lazy_) writer.add_int32(5, lazy_->host_pid());
  channel_.send(FromCoreKind::parked, body);
}

bool Coordinator::await_release() {
  fault_point("await_release");
  for (;;) {
    pollfd awaited[] = {{channel_.borrow(), POLLIN, 0}, {signals_.borrow(), POLLIN, 0}};
    if (!channel_.has_news() && ::poll(awaited, std::size(awaited), -1) < 0 && errno != EINTR) {
      throw NativeError::from_errno("poll", errno);
    }
    if (channel_.has_news()) {
      const auto message = channel_.receive();
      if (!message) throw NativeError("control_closed", "the other side of the control socket has gone");
      if (message->kind == ToCoreKind::release) return true;
      if (message->kind == ToCoreKind::keep && door_) return false;
      if (message->kind == ToCoreKind::abort) throw NativeError("aborted");
      throw NativeError("bad_request", "a message other than release or abort while parked");
    }
    check_tasks();  // not the channel: what has come since is for the next round
  }
}

// Undo: as before, by us or the janitor.
// If we die here: the tasks are killed, what was made is taken back.
void Coordinator::hand_over() {
  fault_point("hand_over");
  ::prctl(PR_SET_NAME, "stasis-parked", 0, 0, 0);
  // Nothing of the restore may keep a file system busy, or a reader of the caller's output waiting.
  const UniqueFd null(sys::openat(AT_FDCWD, "/dev/null", O_RDWR));
  std::vector<int> held = {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO, kImagesDescriptor};
  for (const PlanExternal& external : plan_.externals) held.push_back(external.descriptor);
  flush_log();
  for (const int fd : held) {
    if (fd != null.borrow() && fd >= 0)
      sys::try_syscall(SYS_dup3, static_cast<uint64_t>(null.borrow()), static_cast<uint64_t>(fd),
                       fd > 2 ? O_CLOEXEC : 0);
  }
  channel_.send(FromCoreKind::kept, {});
}

bool Coordinator::await_start() {
  fault_point("await_start");
  for (;;) {
    pollfd awaited[] = {{door_->borrow(), POLLIN, 0}, {signals_.borrow(), POLLIN, 0}};
    if (::poll(awaited, std::size(awaited), -1) < 0 && errno != EINTR) throw NativeError::from_errno("poll", errno);
    try {
      check_tasks();
    } catch (const NativeError& error) {
      if (error.reason != "task_gone") throw;
      leave_dead();
      return false;
    }
    if (door_->has_been_opened()) return true;
  }
}

void Coordinator::leave_dead() {
  finished_ = true;
  tree_->kill_all();
  janitor_->dismiss();
}

void Coordinator::release() {
  timings_.enter("release");
  fault_point("stop_threads");
  threads_->stop();
  fault_point("unmap_hole");
  threads_->unmap_hole();
  if (connections_) {
    timings_.enter("connections");
    connections_->make(*tree_);
    timings_.enter("release");
  }
  fault_point("set_registers");
  threads_->set_registers();
  if (connections_) connections_->open();  // last: from here on the peers hear of us
  threads_->detach();
  connections_.reset();
}

void Coordinator::commit() {
  fault_point("commit");
  if (lazy_) lazy_->commit();
  // Who starts a container is told so only when it runs for good, and then even if we die in between.
  if (door_) janitor_->answer_when_dismissed(door_->borrow_pipe());
  tree_->let_go();
  janitor_->dismiss();
  finished_ = true;
  timings_.finish();
  if (door_) fault_point("committed");
  door_.reset();
}

std::vector<NativeError> Coordinator::take_back() {
  if (finished_) return {};
  finished_ = true;
  // Not reset: the tree's descriptors may still be named by an error on its way out.
  if (tree_) tree_->kill_all();
  connections_.reset();  // after the tasks: in repair mode the last close is silent
  lazy_.reset();         // after the tasks: with the last descriptor of their memory it would read as zeros
  std::vector<NativeError> failures = perform_undo(request_.undo);
  if (janitor_) janitor_->dismiss();
  return failures;
}

}  // namespace stasis
