// What the parasite and its host share: one mapping in the target, laid out as
//
//   +------+----------------+---------------+----------------+-- ... --+
//   | code | ProcessRecord  | TimerRecord[] | thread slot 0  |  slot n |
//   +------+----------------+---------------+----------------+-- ... --+
//   a slot: ThreadRecord | rt_sigreturn frame with xstate | stack
//
// Version 3. Both sides are built from this header in one build, so the version
// only guards against a stale image.
#pragma once

#include <stddef.h>
#include <stdint.h>

// In the first bytes of the code.
#define STASIS_PARASITE_SIGNATURE "stasis-parasite"

namespace stasis::parasite {

constexpr uint32_t kAbiVersion = 3;
constexpr uint64_t kSignals = 64;
constexpr uint64_t kResources = 16;

// The parasite is mapped at the first free place from here, so that what a dead
// host leaves is known even if it died before the code was copied.
constexpr uint64_t kHomeAddress = 0x57a515000000;
constexpr uint64_t kHomeStepBytes = 1 << 20;
constexpr uint64_t kHomeBytes = uint64_t{1} << 34;

// How long the parasite waits for its host before it goes home by itself. When
// the host lives, it is back in microseconds; when it was killed, this is how
// long the target is delayed. While a thread forks the twin, the others wait:
// they get more patience for each GiB (a fork of one was measured at 15 to 22 ms).
constexpr uint64_t kWaitNanoseconds = 300'000'000;
constexpr uint64_t kWaitNanosecondsPerGib = 300'000'000;

// kOffering: a descriptor is held open until the host has a copy of it, and says so.
enum ThreadState : uint32_t { kPrepared = 0, kDone = 1, kLeaving = 2, kOffering = 3 };

struct KernelSigaction {
  uint64_t handler, flags, restorer, mask;
};
struct KernelTimeval {
  int64_t seconds, microseconds;
};
struct KernelItimerval {
  KernelTimeval interval, value;
};
struct KernelTimespec {
  int64_t seconds, nanoseconds;
};
struct KernelItimerspec {
  KernelTimespec interval, value;
};
struct KernelRlimit {
  uint64_t current, maximal;
};
struct KernelStack {
  uint64_t address;
  int32_t flags;
  int32_t padding;
  uint64_t length_bytes;
};

struct TimerRecord {
  int32_t id;       // in
  int32_t error;    // out: of timer_gettime
  int32_t overrun;  // out
  int32_t padding;
  KernelItimerspec value;
};

struct ProcessRecord {
  uint32_t version;      // in: kAbiVersion
  uint32_t timer_count;  // in
  uint64_t timers;       // in: address of TimerRecord[]
  // out; a negative number is the errno of the call
  KernelSigaction sigactions[kSignals];  // [0] is signal 1
  int32_t sigaction_errors[kSignals];
  KernelItimerval itimers[3];  // REAL, VIRTUAL, PROF
  KernelRlimit rlimits[kResources];
  int32_t rlimit_errors[kResources];
  int32_t dumpable;
  int32_t child_subreaper;
  int32_t thp_disabled;
  int32_t membarrier_registrations;
  uint64_t program_break;
  uint32_t twin_wanted;  // in: fork one
  int32_t twin_pid;      // out: in the target's pid namespace
  uint32_t uffd_wanted;  // in: make a userfaultfd and offer it
  int32_t uffd;          // out: its number while it is offered, or a negative errno
  uint32_t uffd_taken;   // in, while it is offered: the host has it
  uint32_t padding;
};

struct ThreadRecord {
  uint64_t frame;           // in: stack pointer for rt_sigreturn
  uint64_t process_record;  // in: address, 0 unless this thread fills it
  uint32_t state;           // ThreadState; a futex word that is woken on kDone
  uint32_t padding;
  // out; a negative number is the errno of the call
  int32_t altstack_error;
  int32_t tid_address_error;
  int32_t parent_death_signal;
  int32_t securebits;
  int32_t timer_slack_ns;
  int32_t padding2;
  KernelStack altstack;
  uint64_t tid_address;
  uint64_t patience_ns;  // in
};

static_assert(sizeof(KernelSigaction) == 32);
static_assert(sizeof(KernelItimerval) == 32);
static_assert(sizeof(KernelItimerspec) == 32);
static_assert(sizeof(KernelStack) == 24);
static_assert(sizeof(TimerRecord) == 48 && offsetof(TimerRecord, value) == 16);
static_assert(offsetof(ProcessRecord, sigactions) == 16);
static_assert(offsetof(ProcessRecord, sigaction_errors) == 2064);
static_assert(offsetof(ProcessRecord, itimers) == 2320);
static_assert(offsetof(ProcessRecord, rlimits) == 2416);
static_assert(offsetof(ProcessRecord, dumpable) == 2736);
static_assert(sizeof(ProcessRecord) == 2784 && offsetof(ProcessRecord, twin_wanted) == 2760);
static_assert(offsetof(ProcessRecord, uffd_taken) == 2776);
static_assert(offsetof(ThreadRecord, state) == 16 && offsetof(ThreadRecord, altstack) == 48);
static_assert(sizeof(ThreadRecord) == 88);

}  // namespace stasis::parasite
