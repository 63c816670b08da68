// The parasite: asks the kernel what only the task itself can ask, waits for
// its host, and returns to the interrupted context by rt_sigreturn if the host
// does not come. Freestanding; runs with all signals blocked, on its own stack,
// without touching vector registers. It makes no call that uses the task's
// restart block, because the target may be in the middle of one that does:
// the wait is a ppoll(2), which restarts without it.
#include "parasite/parasite_abi.h"

using namespace stasis::parasite;

namespace {

enum : long {
  kSysClose = 3,
  kSysBrk = 12,
  kSysRtSigaction = 13,
  kSysGetitimer = 36,
  kSysClone = 56,
  kSysSigaltstack = 131,
  kSysPrctl = 157,
  kSysFutex = 202,
  kSysTimerGettime = 224,
  kSysTimerGetoverrun = 225,
  kSysPpoll = 271,
  kSysPrlimit64 = 302,
  kSysUserfaultfd = 323,
  kSysMembarrier = 324,
};

// linux/sched.h. No exit signal: the target does not hear of its twin's end, and
// an ordinary wait(2) does not see it. Descriptors and directories are shared,
// not duplicated: nothing that the target closes is kept open. CLONE_PTRACE
// attaches the twin to our tracer, without a stop of ours.
constexpr long kTwinFlags = 0x00000200 | 0x00000400 | 0x00002000;  // CLONE_FS | CLONE_FILES | CLONE_PTRACE

enum : long {
  kPrGetPdeathsig = 2,
  kPrGetDumpable = 3,
  kPrGetSecurebits = 27,
  kPrGetTimerslack = 30,
  kPrGetChildSubreaper = 37,
  kPrGetTidAddress = 40,
  kPrGetThpDisable = 42,
  kFutexWake = 1,
  kMembarrierGetRegistrations = 1 << 9,
};

inline long call(long number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0) {
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                   : "rcx", "r11", "memory");
  return result;
}

inline long address_of(const void* pointer) { return reinterpret_cast<long>(pointer); }

// The twin is born stopped, and stays so. Let loose by the death of its tracer
// it ends at once, without touching memory: it has our stack, which is shared.
inline long fork_twin() {
  long result;
  register long r10 __asm__("r10") = 0;
  register long r8 __asm__("r8") = 0;
  __asm__ volatile(
      "syscall\n\t"
      "test %%rax, %%rax\n\t"
      "jnz 2f\n"
      "1:\n\t"
      "mov $231, %%eax\n\t"  // exit_group
      "xor %%edi, %%edi\n\t"
      "syscall\n\t"
      "jmp 1b\n"
      "2:"
      : "=a"(result)
      : "0"(static_cast<long>(kSysClone)), "D"(kTwinFlags), "S"(0l), "d"(0l), "r"(r10), "r"(r8)
      : "rcx", "r11", "memory");
  return result;
}

void fill_process(ProcessRecord* record) {
  for (unsigned i = 0; i < kSignals; ++i) {
    record->sigaction_errors[i] =
        static_cast<int32_t>(call(kSysRtSigaction, i + 1, 0, address_of(&record->sigactions[i]), 8));
  }
  for (unsigned i = 0; i < 3; ++i) call(kSysGetitimer, i, address_of(&record->itimers[i]));
  auto* timers = reinterpret_cast<TimerRecord*>(record->timers);
  for (unsigned i = 0; i < record->timer_count; ++i) {
    timers[i].error = static_cast<int32_t>(call(kSysTimerGettime, timers[i].id, address_of(&timers[i].value)));
    timers[i].overrun = static_cast<int32_t>(call(kSysTimerGetoverrun, timers[i].id));
  }
  for (unsigned i = 0; i < kResources; ++i) {
    record->rlimit_errors[i] = static_cast<int32_t>(call(kSysPrlimit64, 0, i, 0, address_of(&record->rlimits[i])));
  }
  record->dumpable = static_cast<int32_t>(call(kSysPrctl, kPrGetDumpable));
  int32_t subreaper = 0;
  const long subreaper_error = call(kSysPrctl, kPrGetChildSubreaper, address_of(&subreaper));
  record->child_subreaper = subreaper_error < 0 ? static_cast<int32_t>(subreaper_error) : subreaper;
  record->thp_disabled = static_cast<int32_t>(call(kSysPrctl, kPrGetThpDisable));
  record->membarrier_registrations = static_cast<int32_t>(call(kSysMembarrier, kMembarrierGetRegistrations));
  record->program_break = static_cast<uint64_t>(call(kSysBrk, 0));
}

inline void pause_ns(int64_t nanoseconds) {
  KernelTimespec patience = {nanoseconds / 1'000'000'000, nanoseconds % 1'000'000'000};
  call(kSysPpoll, 0, 0, address_of(&patience), 0, 8);
}

// Open only while this function runs, whatever becomes of the host: a target
// that was left with a descriptor of ours could not be captured any more.
void offer_uffd(ThreadRecord* thread, ProcessRecord* record) {
  constexpr long kFlags = 02000000 | 1;  // O_CLOEXEC | UFFD_USER_MODE_ONLY, which needs no privilege
  constexpr int kSpins = 20000;
  constexpr int64_t kSliceNanoseconds = 100'000;
  const long uffd = call(kSysUserfaultfd, kFlags);
  record->uffd = static_cast<int32_t>(uffd);
  if (uffd < 0) return;
  __atomic_store_n(&thread->state, kOffering, __ATOMIC_RELEASE);
  call(kSysFutex, address_of(&thread->state), kFutexWake, 1);
  const auto taken = [record] { return __atomic_load_n(&record->uffd_taken, __ATOMIC_ACQUIRE) != 0; };
  for (int spin = 0; spin < kSpins && !taken(); ++spin) __builtin_ia32_pause();
  for (uint64_t waited = 0; waited < thread->patience_ns && !taken(); waited += kSliceNanoseconds)
    pause_ns(kSliceNanoseconds);
  call(kSysClose, uffd);
}

void fill_thread(ThreadRecord* record) {
  record->altstack_error = static_cast<int32_t>(call(kSysSigaltstack, 0, address_of(&record->altstack)));
  record->tid_address_error = static_cast<int32_t>(call(kSysPrctl, kPrGetTidAddress, address_of(&record->tid_address)));
  int32_t signal = 0;
  const long signal_error = call(kSysPrctl, kPrGetPdeathsig, address_of(&signal));
  record->parent_death_signal = signal_error < 0 ? static_cast<int32_t>(signal_error) : signal;
  record->securebits = static_cast<int32_t>(call(kSysPrctl, kPrGetSecurebits));
  record->timer_slack_ns = static_cast<int32_t>(call(kSysPrctl, kPrGetTimerslack));
}

}  // namespace

// The signature tells a later host what a dead one has left behind.
__asm__(
    ".pushsection .text.entry,\"ax\",@progbits\n\t"
    // Read before it is written: a read brings the pages around along, other threads' among them.
    "cmpb $0, (%rsp)\n\t"
    "jmp stasis_parasite_main\n\t"
    ".ascii \"" STASIS_PARASITE_SIGNATURE
    "\"\n\t"
    ".balign 16\n\t"
    ".popsection");

extern "C" [[gnu::used, noreturn]] void stasis_parasite_main(ThreadRecord* record) {
  fill_thread(record);
  if (record->process_record) {
    auto* process = reinterpret_cast<ProcessRecord*>(record->process_record);
    fill_process(process);
    if (process->uffd_wanted) offer_uffd(record, process);
    if (process->twin_wanted) process->twin_pid = static_cast<int32_t>(fork_twin());
  }
  __atomic_store_n(&record->state, kDone, __ATOMIC_RELEASE);
  call(kSysFutex, address_of(&record->state), kFutexWake, 1);
  // The host interrupts this wait and puts the thread back itself. It ends only
  // if the host has died.
  pause_ns(static_cast<int64_t>(record->patience_ns));
  __atomic_store_n(&record->state, kLeaving, __ATOMIC_RELEASE);
  __asm__ volatile("mov %0, %%rsp\n\tmov $15, %%eax\n\tsyscall\n\tud2" : : "r"(record->frame) : "memory");
  __builtin_unreachable();
}
