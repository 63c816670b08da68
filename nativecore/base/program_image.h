// An image of one of our programs after its start: a process of node that has
// loaded everything and waits. `stasis-core program-image` writes it, the
// launcher becomes it. Fixed records in one file, which nobody but the
// installation writes: it is code, and trusted as the addon is. It is of use
// for this kernel, processor and these files alone: docs/design/0072.
//
//     header │ files │ regions │ runs │ threads │ descriptors │ watches │ names │ pages
#pragma once

#include <cstdint>

namespace stasis::program_image {

constexpr char kMagic[8] = {'s', 't', 'a', 's', 'i', 's', 'P', '1'};

// Descriptors of the program begin here: below are those that a caller hands on.
constexpr int kFirstDescriptor = 256;

// The environment variable by which the program hears that it is to be written,
// and to which descriptor it says where its ProgramStart is.
constexpr char kAskedBy[] = "STASIS_PROGRAM_IMAGE";

constexpr int kSignals = 64;

// struct sigaction of the kernel.
struct SignalAction {
  uint64_t handler, flags, restorer, mask;
};

// What the program waits for, and what it is started with. Lies in its memory.
struct ProgramStart {
  uint32_t started;  // futex
  uint32_t argument_count;
  char** arguments;
  char** environment;
  int64_t monotonic_ns;            // of its clock, which must not be set back
  void** program_break;            // what the C library takes it to be: the loader's from now on
  SignalAction actions[kSignals];  // what nobody else can ask for
};

struct Table {
  uint64_t offset;
  uint64_t count;
};

// A file that is mapped. Another one under its name means another program.
struct File {
  uint64_t name_offset;  // in `names`, ends with a zero byte
  uint64_t inode, size_bytes;
  int64_t modified_ns, changed_ns;
};

struct Region {
  uint64_t start, end;
  uint64_t file_offset;
  int32_t file;  // -1: anonymous
  int32_t protection;
};

// Pages that are not as a fresh mapping would have them.
struct Run {
  uint64_t start, end;
  uint64_t image_offset;
  int32_t protection;
  int32_t padding;
};

// Sits in a system call, which begins anew.
struct Thread {
  uint64_t r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, rip, rflags, rsp;
  uint64_t fs_base;
  uint64_t signal_mask;
  uint64_t tid_address;  // where the C library keeps the thread's number
  uint64_t robust_list, robust_list_bytes;
  uint64_t rseq, rseq_bytes, rseq_signature;  // rseq 0: not registered
};

constexpr uint64_t kPipeBytes = 16;

enum class DescriptorKind : int32_t { epoll, event, pipe_read, pipe_write, null };

struct Descriptor {
  int32_t number;
  DescriptorKind kind;
  int32_t status_flags;  // of open(2)
  int32_t close_on_exec;
  uint64_t identity;  // of a pipe: the same for both ends
  uint64_t count;     // of an event; bytes in a pipe
  char bytes[kPipeBytes];
};

struct Watch {
  int32_t epoll, number;
  uint32_t events;
  uint32_t padding;
  uint64_t data;
};

constexpr uint32_t kCpuWords = 24;
constexpr uint32_t kKernelBytes = 256;

struct Header {
  char magic[8];
  uint64_t file_bytes;
  uint64_t head_bytes;  // all but the pages
  uint32_t cpu[kCpuWords];
  char kernel[kKernelBytes];  // utsname.release, version
  uint64_t vdso_start, vdso_bytes;
  uint64_t vvar_start, vvar_bytes;  // the mappings of the kernel's that end where the vdso begins
  int64_t monotonic_ns;
  uint64_t start_address;  // of ProgramStart
  Table files, regions, runs, threads, descriptors, watches, names;
  uint64_t vdso_offset;  // its content, for comparison
};

// What of the processor code was chosen by: features, sizes of registers. `words` is filled.
inline void read_cpu(uint32_t (&words)[kCpuWords]) {
  const auto ask = [](uint32_t leaf, uint32_t subleaf, uint32_t* out) {
    asm volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(subleaf));
  };
  ask(1, 0, words);
  words[1] = 0;  // of the processor that happens to run this
  ask(7, 0, words + 4);
  ask(7, 1, words + 8);
  ask(0xd, 0, words + 12);
  ask(0x80000001, 0, words + 16);
  asm volatile("xgetbv" : "=a"(words[20]), "=d"(words[21]) : "c"(0));
  words[22] = words[23] = 0;
}

}  // namespace stasis::program_image
