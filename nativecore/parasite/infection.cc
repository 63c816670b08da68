#include "parasite/infection.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/fault_point.h"
#include "base/log_ring.h"
#include "base/native_error.h"
#include "base/page.h"
#include "base/parallel.h"
#include "parasite/self_return_frame.h"
#include "trace/ptrace_calls.h"

extern "C" const unsigned char parasite_blob_start[];
extern "C" const unsigned char parasite_blob_end[];

namespace stasis {
namespace {

using parasite::ProcessRecord;
using parasite::ThreadRecord;
using parasite::TimerRecord;

// The parasite needs a few hundred bytes. A signal handler may run on this
// stack if we die between setting registers and blocking signals.
constexpr uint64_t kStackBytes = 16384;
constexpr uint64_t kPlainFlags = 0x202;
constexpr int kSpins = 4000;  // some 50 us: an answer usually takes less than sleeping and waking does
constexpr int kLooks = 100;   // where each is a system call
constexpr long kAttendNanoseconds = 1'000'000;
constexpr long kLookNanoseconds = 60'000;  // what an answer takes on our own processor, and a little more

// The record of a thread starts this far into a page, so that the top of the
// stack before it is in the same one: each page that is touched is a fault here and one there.
constexpr uint64_t kStackTopBytes = 1024;

constexpr uint64_t align(uint64_t value, uint64_t alignment) { return (value + alignment - 1) / alignment * alignment; }

// Nothing else is mapped there. Steps, not gaps: two processes that share their
// memory are infected at the same time, so each looks from its own step on.
uint64_t free_home(pid_t host_pid, const std::vector<Vma>& vmas, uint64_t length_bytes) {
  const uint64_t stride = align(length_bytes, parasite::kHomeStepBytes);
  uint64_t address = parasite::kHomeAddress + static_cast<uint64_t>(host_pid) % 1024 * stride;
  for (const Vma& vma : vmas) {
    if (vma.end > address && vma.start < address + length_bytes) address = align(vma.end, parasite::kHomeStepBytes);
  }
  return address;
}

std::vector<RemoteCall*> pointers_to(std::vector<RemoteCall>& calls) {
  std::vector<RemoteCall*> pointers;
  for (RemoteCall& call : calls) pointers.push_back(&call);
  return pointers;
}

}  // namespace

void prepare_infection() { prepare_self_return_frames(); }

Infection::Infection(FrozenTree& tree, TracedProcess& process, const std::vector<Vma>& vmas,
                     ReturnPathFinder& return_paths, std::string_view status, std::vector<InfectedThread> threads,
                     const std::vector<int32_t>& timer_ids, std::vector<StaleParasite> stale, const TwinWish& twin,
                     const ParasiteWish& wish, const Deadline& deadline)
    : tree_(tree), process_(process), threads_(std::move(threads)), stale_(std::move(stale)), twin_(twin), wish_(wish) {
  STASIS_CONTEXT("preparing the parasite", process_.host_pid);
  deadline.check("preparing the parasite");
  STASIS_ASSERT(!threads_.empty());
  records_.resize(threads_.size());
  timers_.resize(timer_ids.size());
  for (size_t i = 0; i < timer_ids.size(); ++i) timers_[i].id = timer_ids[i];

  size_t xstate_bytes = 0;
  for (const InfectedThread& thread : threads_) xstate_bytes = std::max(xstate_bytes, thread.xstate->size());
  code_bytes_ = align(static_cast<uint64_t>(parasite_blob_end - parasite_blob_start), 64);
  const uint64_t timers_offset = align(code_bytes_ + sizeof(ProcessRecord), 64);
  first_slot_offset_ = align(timers_offset + timers_.size() * sizeof(TimerRecord), 64);
  slot_bytes_ = align(align(sizeof(ThreadRecord), 64) + self_return_frame_bytes(xstate_bytes) + kStackBytes, 64);
  if (threads_.size() > 1) {
    first_slot_offset_ = align(first_slot_offset_, kPageBytes) + kStackTopBytes;
    slot_bytes_ = align(slot_bytes_, kPageBytes);
  }
  region_bytes_ = align(first_slot_offset_ + threads_.size() * slot_bytes_, kPageBytes);

  set_options(true);
  const InfectedThread& leader = threads_.front();
  way_home_ = std::make_unique<WayHome>(process_, vmas, return_paths, status, leader.context, *leader.xstate,
                                        leader.rseq_abort_ip);
  home_ = free_home(process_.host_pid, vmas, region_bytes_);
}

RemoteCall Infection::leader_call(uint64_t number, const std::array<uint64_t, 6>& arguments) {
  const InfectedThread& leader = threads_.front();
  return {leader.thread, &leader.context, way_home_->site(), number, arguments, 0};
}

void Infection::map_all(FrozenTree& tree, const std::vector<Infection*>& infections, const Deadline& deadline) {
  STASIS_CONTEXT("mapping the parasite");
  fault_point("parasite_map");
  std::vector<RemoteCall> calls;
  for (Infection* infection : infections) {
    calls.push_back(infection->leader_call(
        SYS_mmap, {infection->home_, infection->region_bytes_, PROT_READ | PROT_WRITE | PROT_EXEC,
                   MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, static_cast<uint64_t>(-1), 0}));
  }
  run_remote_syscalls(tree, pointers_to(calls), deadline);
  for (size_t i = 0; i < calls.size(); ++i) {
    if (calls[i].result > 0) infections[i]->region_address_ = static_cast<uint64_t>(calls[i].result);
  }
  for (size_t i = 0; i < calls.size(); ++i) {
    if (calls[i].result < 0)
      throw NativeError::from_errno("mmap in the target", static_cast<int>(-calls[i].result))
          .with_pid(infections[i]->process_.host_pid);
  }
  fault_point("parasite_mapped");
  parallel_for(infections.size(), kMaximalWorkers, [&](size_t index, bool) { infections[index]->write_region(); });
}

Infection::~Infection() {
  if (region_address_) {
    try {
      put_back(Deadline::in_ms(1000));
    } catch (const NativeError& error) {
      log_line("taking the parasite out: %s", error.what());
    }
  }
  set_options(false);
}

// While the parasite is inside, filters are suspended where there are any (the
// option needs CAP_SYS_ADMIN, and a tracer that dies takes it along), and the
// leader's fork of the twin is no event for which it would have to stop.
void Infection::set_options(bool inside) {
  if (inside == options_set_) return;
  constexpr uint64_t kForkEvents = PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE;
  for (const InfectedThread& thread : threads_) {
    uint64_t options = kSeizeOptions;
    if (thread.seccomp) options |= kPtraceOptionSuspendSeccomp;
    if (twin_.wanted && &thread == &threads_.front()) options &= ~kForkEvents;
    if (options == kSeizeOptions) continue;
    const int error = try_ptrace(PTRACE_SETOPTIONS, thread.thread->host_tid, 0, inside ? options : kSeizeOptions);
    if (error && inside) throw NativeError::from_errno("PTRACE_SETOPTIONS", error).with_pid(thread.thread->host_tid);
  }
  options_set_ = inside;
}

uint64_t Infection::used_bytes() const {
  return threads_.size() == 1 ? slot_offset(0) + slot_bytes_ - kStackBytes : region_bytes_;
}

// Fills the region through a mapping of the same pages; where map_files is not
// allowed, through the target's memory. So, too, where one thread answers at
// once: that is three calls, and a mapping is four and as many page faults.
void Infection::write_region() {
  const bool answers_at_once = threads_.size() == 1 && !twin_.wanted && !wish_.uffd;
  const std::string name = map_files_name(region_address_, region_address_ + region_bytes_);
  const sys::Try<UniqueFd> file =
      answers_at_once ? sys::Try<UniqueFd>{{}, EPERM} : sys::try_openat(process_.proc.borrow(), name.c_str(), O_RDWR);
  if (file.ok()) {
    sys::Try<sys::Mapping> mapping =
        sys::try_mmap(0, region_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file.value.borrow());
    if (mapping.ok()) shared_ = std::move(mapping.value);
  }
  if (!shared_.valid()) image_.assign(used_bytes(), 0);
  unsigned char* const own = shared_.valid() ? shared_.data() : image_.data();

  std::memcpy(own, parasite_blob_start, static_cast<size_t>(parasite_blob_end - parasite_blob_start));
  process_record_.version = parasite::kAbiVersion;
  process_record_.timer_count = static_cast<uint32_t>(timers_.size());
  const uint64_t timers_offset = align(code_bytes_ + sizeof(ProcessRecord), 64);
  process_record_.timers = region_address_ + timers_offset;
  process_record_.twin_wanted = twin_.wanted;
  process_record_.uffd_wanted = wish_.uffd;
  std::memcpy(own + code_bytes_, &process_record_, sizeof process_record_);
  if (!timers_.empty()) std::memcpy(own + timers_offset, timers_.data(), timers_.size() * sizeof(TimerRecord));
  for (size_t i = 0; i < threads_.size(); ++i) {
    const InfectedThread& thread = threads_[i];
    const uint64_t frame_offset = slot_offset(i) + align(sizeof(ThreadRecord), 64);
    ThreadRecord record{};
    record.frame = write_self_return_frame(own + frame_offset, region_address_ + frame_offset, thread.context,
                                           *thread.xstate, thread.rseq_abort_ip);
    record.process_record = i == 0 ? region_address_ + code_bytes_ : 0;
    record.state = parasite::kPrepared;
    record.patience_ns = parasite::kWaitNanoseconds;
    if (twin_.wanted) record.patience_ns += (twin_.memory_bytes >> 30) * parasite::kWaitNanosecondsPerGib;
    std::memcpy(own + slot_offset(i), &record, sizeof record);
  }
  if (shared_.valid()) return;
  const sys::Try<size_t> written =
      sys::try_process_vm_write(process_.host_pid, image_.data(), region_address_, image_.size());
  if (!written.ok() || written.value != image_.size())
    throw NativeError::from_errno("process_vm_writev", written.ok() ? EFAULT : written.error)
        .with_pid(process_.host_pid);
}

void Infection::start(const Deadline& deadline) {
  STASIS_CONTEXT("running the parasite", process_.host_pid);
  deadline.check("starting the parasite");
  running_ = true;
  for (size_t i = 0; i < threads_.size(); ++i) {
    const pid_t host_tid = threads_[i].thread->host_tid;
    user_regs_struct registers = threads_[i].context.registers;
    registers.rip = region_address_;
    // As after a call: 8 below a multiple of 16.
    registers.rsp = region_address_ + (slot_offset(i) + slot_bytes_) / 16 * 16 - 8;
    registers.rdi = region_address_ + slot_offset(i);
    registers.rax = 0;
    registers.orig_rax = UINT64_MAX;
    registers.eflags = kPlainFlags;
    uint64_t mask = kAllSignals;
    // Registers before the mask: from the first on, sigreturn restores both.
    checked_ptrace(PTRACE_SETREGS, host_tid, 0, reinterpret_cast<uint64_t>(&registers));
    fault_point("parasite_registers_set");
    checked_ptrace(PTRACE_SETSIGMASK, host_tid, sizeof mask, reinterpret_cast<uint64_t>(&mask));
    fault_point("parasite_prepared");
    threads_[i].thread->stopped = false;
    checked_ptrace(PTRACE_CONT, host_tid, 0, 0);
  }
  fault_point("parasite_started");
}

uint32_t Infection::state_of(size_t index) {
  if (shared_.valid()) {
    const auto* record = reinterpret_cast<const ThreadRecord*>(shared_.data() + slot_offset(index));
    return __atomic_load_n(&record->state, __ATOMIC_ACQUIRE);
  }
  uint32_t state = parasite::kPrepared;
  const sys::Try<size_t> read = sys::try_process_vm_read(
      process_.host_pid, &state, region_address_ + slot_offset(index) + offsetof(ThreadRecord, state), sizeof state);
  if (!read.ok()) throw NativeError::from_errno("process_vm_readv", read.error).with_pid(process_.host_pid);
  return state;
}

bool Infection::has_answered(size_t index) {
  const uint32_t state = state_of(index);
  if (state == parasite::kOffering && !offer_answered_) answer_offer(true);
  return state == parasite::kDone || state == parasite::kLeaving;
}

// It is closed in the target as soon as we have answered.
void Infection::answer_offer(bool take) {
  offer_answered_ = true;
  const uint32_t taken = 1;
  int32_t number = -1;
  const uint64_t record_address = region_address_ + code_bytes_;
  auto* const own = shared_.valid() ? reinterpret_cast<ProcessRecord*>(shared_.data() + code_bytes_) : nullptr;
  if (take) {
    const bool read = own || sys::try_process_vm_read(process_.host_pid, &number,
                                                      record_address + offsetof(ProcessRecord, uffd), sizeof number)
                                 .ok();
    if (own) number = own->uffd;
    if (read) uffd_ = sys::try_pidfd_getfd(process_.pidfd.borrow(), TargetFd(number));
  }
  if (own) {
    __atomic_store_n(&own->uffd_taken, taken, __ATOMIC_RELEASE);
    return;
  }
  const sys::Try<size_t> written = sys::try_process_vm_write(
      process_.host_pid, &taken, record_address + offsetof(ProcessRecord, uffd_taken), sizeof taken);
  if (!written.ok()) throw NativeError::from_errno("process_vm_writev", written.error).with_pid(process_.host_pid);
}

// Interrupted in the middle of its offer, the parasite would leave the descriptor open.
void Infection::wait_until_nothing_is_offered(const Deadline& deadline) {
  if (!wish_.uffd || !running_ || threads_.front().thread->stopped) return;
  if (!offer_answered_) answer_offer(false);
  while (!has_answered(0) && !deadline.expired()) {
    attend_stops(0);
    sys::try_syscall(SYS_sched_yield);
  }
}

// A thread that takes its time: killed, or stopped by SIGSTOP, which nobody can block.
void Infection::attend_stops(size_t index) {
  TracedThread& thread = *threads_[index].thread;
  int status = 0;
  const sys::Try<pid_t> waited = sys::try_waitpid(thread.host_tid, &status, WNOHANG);
  if (waited.ok() && waited.value == 0) return;
  if (!waited.ok() || !WIFSTOPPED(status)) {
    throw NativeError("task_gone", "running the parasite").with_pid(thread.host_tid);
  }
  const int signal = WSTOPSIG(status);
  if (status >> 16 == 0 && signal == SIGSTOP) {
    thread.deferred_signal = SIGSTOP;
  } else if (status >> 16 == 0) {
    // All signals are blocked: this is a fault in the parasite itself.
    throw NativeError("bug", "signal " + std::to_string(signal) + " in the parasite").with_pid(thread.host_tid);
  }
  checked_ptrace(PTRACE_CONT, thread.host_tid, 0, 0);
}

// On our own processor the target does not run before we sleep.
bool Infection::waits_for_us() const {
  const sys::Try<std::string> stat = process_.proc.try_read("stat");
  return stat.ok() && stat_processor(stat.value) == ::sched_getcpu();
}

void Infection::await_answers(bool others_run, const Deadline& deadline) {
  // The last first. Where others run besides, without looking on: one of the processors that they need is ours.
  for (size_t i = threads_.size(); i-- > 0;) {
    const bool look_on = threads_.size() == 1 && !others_run && !waits_for_us();
    const int spins = !look_on ? 1 : shared_.valid() ? kSpins : kLooks;
    for (int spin = 0; spin < spins && !has_answered(i); ++spin) __builtin_ia32_pause();
    while (!has_answered(i)) {
      attend_stops(i);
      if (deadline.expired())
        throw NativeError("deadline", "waiting for the parasite").with_pid(threads_[i].thread->host_tid);
      const timespec patience{0, kAttendNanoseconds};
      if (shared_.valid()) {
        sys::try_syscall(SYS_futex, shared_.address() + slot_offset(i) + offsetof(ThreadRecord, state), FUTEX_WAIT,
                         parasite::kPrepared, reinterpret_cast<uint64_t>(&patience));
      } else {
        const timespec pause{0, kLookNanoseconds};
        ::nanosleep(&pause, nullptr);
      }
    }
  }
}

int32_t Infection::await(bool others_run, const Deadline& deadline) {
  STASIS_CONTEXT("waiting for the parasite", process_.host_pid);
  await_answers(others_run, deadline);
  fault_point("parasite_answered");
  if (!twin_.wanted && !wish_.uffd) return 0;
  collect();
  if (wish_.uffd && process_record_.uffd < 0) uffd_.error = -process_record_.uffd;
  if (!twin_.wanted) return 0;
  return process_record_.twin_pid;
}

void Infection::take_out_all(FrozenTree& tree, const std::vector<Infection*>& infections, const Deadline& deadline) {
  STASIS_CONTEXT("taking the parasite out");
  std::vector<TracedThread*> running;
  for (const Infection* infection : infections) {
    const std::vector<TracedThread*> threads = infection->running_threads();
    running.insert(running.end(), threads.begin(), threads.end());
  }
  tree.interrupt(running, deadline);
  fault_point("parasite_interrupted");
  for (Infection* infection : infections) infection->restore_threads(false);
  fault_point("parasite_unmap");
  std::vector<RemoteCall> calls;
  for (Infection* infection : infections)
    calls.push_back(infection->leader_call(SYS_munmap, {infection->region_address_, infection->region_bytes_}));
  run_remote_syscalls(tree, pointers_to(calls), deadline);
  for (size_t i = 0; i < calls.size(); ++i) {
    Infection& infection = *infections[i];
    if (calls[i].result < 0)
      throw NativeError::from_errno("munmap in the target", static_cast<int>(-calls[i].result))
          .with_pid(infection.process_.host_pid);
    infection.region_address_ = 0;
  }
  for (Infection* infection : infections) {
    infection->shared_ = sys::Mapping();
    for (const StaleParasite& stale : std::exchange(infection->stale_, {})) {
      RemoteCall call = infection->leader_call(SYS_munmap, {stale.address, stale.length_bytes});
      run_remote_syscalls(tree, {&call}, deadline);
    }
    infection->way_home_.reset();
    infection->set_options(false);
  }
  fault_point("parasite_unmapped");
  for (const Infection* infection : infections) {
    if (infection->left_by_itself_)
      throw NativeError("conflict", "the core was held up for so long that the parasite went home")
          .with_pid(infection->process_.host_pid);
  }
}

std::vector<TracedThread*> Infection::running_threads() const {
  std::vector<TracedThread*> running;
  for (const InfectedThread& thread : threads_) {
    if (running_ && !thread.thread->stopped) running.push_back(thread.thread);
  }
  return running;
}

void Infection::collect() {
  if (!shared_.valid()) {
    const sys::Try<size_t> read =
        sys::try_process_vm_read(process_.host_pid, image_.data(), region_address_, image_.size());
    if (!read.ok() || read.value != image_.size()) {
      throw NativeError::from_errno("process_vm_readv", read.ok() ? EFAULT : read.error).with_pid(process_.host_pid);
    }
  }
  const unsigned char* const own = shared_.valid() ? shared_.data() : image_.data();
  const uint64_t timers_offset = align(code_bytes_ + sizeof(ProcessRecord), 64);
  std::memcpy(&process_record_, own + code_bytes_, sizeof process_record_);
  if (!timers_.empty()) std::memcpy(timers_.data(), own + timers_offset, timers_.size() * sizeof(TimerRecord));
  for (size_t i = 0; i < threads_.size(); ++i) std::memcpy(&records_[i], own + slot_offset(i), sizeof(ThreadRecord));
}

// Preconditions: all threads are stopped, in whatever stage.
void Infection::restore_threads(bool leader_too) {
  if (!running_) return;
  running_ = false;
  collect();
  for (size_t i = 0; i < threads_.size(); ++i) {
    InfectedThread& thread = threads_[i];
    // One that has answered, and has not said that it leaves, waits there.
    const bool is_inside = records_[i].state == parasite::kDone ||
                           read_registers(thread.thread->host_tid).rip - region_address_ < region_bytes_;
    if (!is_inside) {
      // We were away for longer than the parasite's patience.
      if (records_[i].state == parasite::kLeaving) {
        left_by_itself_ = true;
        // The frame below the stack tells of an old context now.
        if (i == 0) way_home_->forget_frame();
        thread.context = read_interrupted_context(thread.thread->host_tid);
      }
      continue;
    }
    if (thread.rseq_critical_section_address)
      put_back_critical_section(process_.proc, thread.rseq_address, thread.rseq_critical_section_address);
    if (i > 0 || leader_too) restore_interrupted_context(thread.thread->host_tid, thread.context);
  }
}

// The way out of a failure.
void Infection::put_back(const Deadline& deadline) {
  wait_until_nothing_is_offered(deadline);
  tree_.interrupt(running_threads(), deadline);
  restore_threads(true);
  RemoteCall call = leader_call(SYS_munmap, {std::exchange(region_address_, 0), region_bytes_});
  run_remote_syscalls(tree_, {&call}, deadline);
  way_home_.reset();
}

}  // namespace stasis
