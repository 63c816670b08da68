#include "launcher/load_image.h"

#include <fcntl.h>
#include <linux/rseq.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/rseq.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/program_image.h"

namespace stasis {
namespace {

using namespace program_image;

// What a new thread finds at its stack pointer: its registrations with the
// kernel, then what rt_sigreturn(2) takes all registers and the mask from.
struct Entry {
  uint64_t rseq, rseq_bytes, rseq_signature, robust_list, robust_list_bytes;
  struct {
    uint64_t flags, link, stack_pointer, stack_flags, stack_bytes;
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, rflags;
    uint16_t cs, gs, fs, ss;
    uint64_t err, trapno, oldmask, cr2, fpstate, reserved[8];
    uint64_t signal_mask;
  } context;
};
static_assert(offsetof(Entry, context) == 40);
static_assert(sizeof(Entry::context) == 40 + 256 + 8);

constexpr char kDamaged[] = "the image is damaged";
constexpr char kInUse[] = "an address of the program is in use";
constexpr char kShort[] = "memory is short";
constexpr char kChanged[] = "files of the program have changed since the image was made";

constexpr uint64_t kRedZone = 128;
constexpr uint64_t kContextSegment = 2, kContextStrictSegment = 4;  // UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS

// rsp: an Entry. Never returns, uses no stack.
extern "C" void stasis_enter_thread();
// clone(2) with this stack; the child goes to stasis_enter_thread.
extern "C" long stasis_clone(uint64_t flags, uint64_t stack, uint64_t tid_address, uint64_t fs_base);
extern "C" [[noreturn]] void stasis_enter_main(uint64_t stack, uint64_t fs_base);

asm(R"(
.text
.globl stasis_clone
stasis_clone:
  mov %rdx, %r10
  mov %rcx, %r8
  mov $56, %eax
  syscall
  test %rax, %rax
  jz stasis_enter_thread
  ret
.globl stasis_enter_main
stasis_enter_main:
  mov %rdi, %rbx
  mov $0x1002, %edi
  mov $158, %eax
  syscall
  mov %rbx, %rsp
.globl stasis_enter_thread
stasis_enter_thread:
  mov (%rsp), %rdi
  test %rdi, %rdi
  jz 1f
  mov 8(%rsp), %rsi
  xor %edx, %edx
  mov 16(%rsp), %r10
  mov $334, %eax
  syscall
1:
  mov 24(%rsp), %rdi
  mov 32(%rsp), %rsi
  mov $273, %eax
  syscall
  add $40, %rsp
  mov $15, %eax
  syscall
  hlt
)");

// Its head: all that is not pages.
class Image {
 public:
  const char* open(const char* path) {
    fd_ = ::open(path, O_RDONLY | O_CLOEXEC);
    if (fd_ < 0) return "there is no image";
    Header begin;
    if (::pread(fd_, &begin, sizeof begin, 0) != sizeof begin) return "the image is too short";
    if (std::memcmp(begin.magic, kMagic, sizeof kMagic) != 0) return "the image is of another version";
    struct stat status;
    if (::fstat(fd_, &status) < 0 || static_cast<uint64_t>(status.st_size) != begin.file_bytes)
      return "the image is cut short";
    if (begin.head_bytes < sizeof begin || begin.head_bytes > begin.file_bytes) return kDamaged;
    void* head = ::mmap(nullptr, begin.head_bytes, PROT_READ, MAP_PRIVATE, fd_, 0);
    if (head == MAP_FAILED) return kShort;
    bytes_ = begin.head_bytes;
    base_ = static_cast<const char*>(head);
    return has_sense() ? nullptr : kDamaged;
  }

  const Header& header() const { return *reinterpret_cast<const Header*>(base_); }
  const char* at(uint64_t offset) const { return base_ + offset; }
  int fd() const { return fd_; }
  // What has been mapped stays.
  void close() {
    ::close(fd_);
    ::munmap(const_cast<char*>(base_), bytes_);
  }

  template <typename Record>
  struct Records {
    const Record* first;
    uint64_t count;
    const Record* begin() const { return first; }
    const Record* end() const { return first + count; }
  };
  template <typename Record>
  Records<Record> records(const Table& table) const {
    return {reinterpret_cast<const Record*>(base_ + table.offset), table.count};
  }

 private:
  bool has_sense() const {
    const Header& head = header();
    if (!fits<File>(head.files) || !fits<Region>(head.regions) || !fits<Run>(head.runs) ||
        !fits<Thread>(head.threads) || !fits<Descriptor>(head.descriptors) || !fits<Watch>(head.watches) ||
        !fits<char>(head.names) || !fits<char>({head.vdso_offset, head.vdso_bytes}) || head.threads.count == 0 ||
        head.names.count == 0 || *at(head.names.offset + head.names.count - 1) != '\0')
      return false;
    for (const File& file : records<File>(head.files)) {
      if (file.name_offset >= head.names.count) return false;
    }
    for (const Region& region : records<Region>(head.regions)) {
      if (region.file >= 0 && static_cast<uint64_t>(region.file) >= head.files.count) return false;
    }
    return true;
  }

  template <typename Record>
  bool fits(const Table& table) const {
    return table.offset <= bytes_ && table.count <= (bytes_ - table.offset) / sizeof(Record);
  }
  int fd_ = -1;
  uint64_t bytes_ = 0;
  const char* base_ = nullptr;
};

struct Span {
  uint64_t start = 0, end = 0;
};

// Our own mappings, and those of the kernel's among them: [vvar] and what else comes before the vdso, and the vdso.
struct OwnMappings {
  Span all[64];
  int count = 0;
  Span pieces[4];
  int piece_count = 0;
  Span vdso;
};

bool find_own_mappings(OwnMappings& own) {
  static char text[16384];
  const int fd = ::open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  size_t length = 0;
  for (ssize_t count; length < sizeof text - 1 && (count = ::read(fd, text + length, sizeof text - 1 - length)) > 0;)
    length += static_cast<size_t>(count);
  ::close(fd);
  text[length] = '\0';
  for (char* line = text; line != nullptr && *line != '\0' && own.count < 64;) {
    char* next = std::strchr(line, '\n');
    if (next != nullptr) *next++ = '\0';
    char* after;
    Span span;
    span.start = std::strtoull(line, &after, 16);
    span.end = std::strtoull(after + 1, nullptr, 16);
    own.all[own.count++] = span;
    if (std::strstr(line, "[vdso]") != nullptr) own.vdso = span;
    if (std::strstr(line, "[vvar") != nullptr && own.piece_count < 4) own.pieces[own.piece_count++] = span;
    line = next;
  }
  return own.vdso.start != 0 && own.piece_count > 0;
}

const char* check_fits(const Image& image, const OwnMappings& own) {
  const Header& header = image.header();
  uint32_t cpu[kCpuWords];
  read_cpu(cpu);
  if (std::memcmp(cpu, header.cpu, sizeof cpu) != 0) return "the image was made on another kind of processor";
  utsname kernel;
  char name[kKernelBytes];
  ::uname(&kernel);
  std::snprintf(name, sizeof name, "%s %s", kernel.release, kernel.version);
  if (std::strcmp(name, header.kernel) != 0) return "the image was made under another kernel";
  if (own.vdso.end - own.vdso.start != header.vdso_bytes ||
      std::memcmp(reinterpret_cast<void*>(own.vdso.start), image.at(header.vdso_offset), header.vdso_bytes) != 0 ||
      own.vdso.start - own.pieces[0].start != header.vdso_start - header.vvar_start)
    return "the image was made under another kernel";
  const auto ns = [](const timespec& time) { return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec; };
  timespec clock;
  ::clock_gettime(CLOCK_MONOTONIC, &clock);
  if (ns(clock) < header.monotonic_ns) return "this machine has just been started";
  for (const File& file : image.records<File>(header.files)) {
    struct stat now;
    if (::stat(image.at(header.names.offset + file.name_offset), &now) < 0 || now.st_ino != file.inode ||
        static_cast<uint64_t>(now.st_size) != file.size_bytes || ns(now.st_mtim) != file.modified_ns ||
        ns(now.st_ctim) != file.changed_ns)
      return kChanged;
  }
  for (const Descriptor& descriptor : image.records<Descriptor>(header.descriptors)) {
    if (::fcntl(descriptor.number, F_GETFD) >= 0) return "a descriptor of the program is in use by its caller";
  }
  return nullptr;
}

bool move(Span from, uint64_t to) {
  const uint64_t bytes = from.end - from.start;
  // Nothing else may be there.
  void* room =
      ::mmap(reinterpret_cast<void*>(to), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (room != reinterpret_cast<void*>(to)) return false;  // an older kernel takes the address as a hint
  return ::mremap(reinterpret_cast<void*>(from.start), bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, room) == room;
}

bool map_at(uint64_t start, uint64_t end, int protection, int kind, int fd, uint64_t offset) {
  void* const address = reinterpret_cast<void*>(start);
  return ::mmap(address, end - start, protection, MAP_PRIVATE | kind, fd, static_cast<off_t>(offset)) == address;
}

const char* map_memory(const Image& image, OwnMappings& own) {
  const Header& header = image.header();
  const File* const files = image.records<File>(header.files).first;
  int opened = -1, fd = -1;  // regions of a file come one after the other
  const auto runs = image.records<Run>(header.runs);
  const Run* run = runs.begin();
  for (const Region& region : image.records<Region>(header.regions)) {
    const bool covered = run != runs.end() && run->start == region.start && run->end == region.end;
    if (!covered && region.file >= 0 && region.file != opened) {
      if (fd >= 0) ::close(fd);
      fd = ::open(image.at(header.names.offset + files[region.file].name_offset), O_RDONLY | O_CLOEXEC);
      if (fd < 0) return kChanged;
      opened = region.file;
    }
    const bool mapped =
        covered ? map_at(run->start, run->end, run->protection, MAP_FIXED_NOREPLACE, image.fd(), run->image_offset)
        : region.file >= 0
            ? map_at(region.start, region.end, region.protection, MAP_FIXED_NOREPLACE, fd, region.file_offset)
            : map_at(region.start, region.end, region.protection, MAP_FIXED_NOREPLACE | MAP_ANONYMOUS | MAP_NORESERVE,
                     -1, 0);
    if (!mapped) return errno == EEXIST ? kInUse : kShort;
    for (; run != runs.end() && run->start < region.end; ++run) {
      if (run->start < region.start || run->end > region.end) return kDamaged;
      if (!covered && !map_at(run->start, run->end, run->protection, MAP_FIXED, image.fd(), run->image_offset))
        return kShort;
    }
  }
  if (fd >= 0) ::close(fd);
  // The C library of this process has asked the vdso for the last time.
  for (int i = 0; i < own.piece_count; ++i) {
    if (!move(own.pieces[i], header.vvar_start + (own.pieces[i].start - own.pieces[0].start))) return kInUse;
  }
  return move(own.vdso, header.vdso_start) ? nullptr : kInUse;
}

bool place(int fd, int number, int close_on_exec) {
  if (fd < 0 || ::dup3(fd, number, close_on_exec != 0 ? O_CLOEXEC : 0) < 0) return false;
  ::close(fd);
  return true;
}

const char* open_descriptors(const Image& image) {
  const Header& header = image.header();
  const auto descriptors = image.records<Descriptor>(header.descriptors);
  for (const Descriptor& descriptor : descriptors) {
    bool placed = true;
    switch (descriptor.kind) {
      case DescriptorKind::epoll:
        placed = place(::epoll_create1(EPOLL_CLOEXEC), descriptor.number, descriptor.close_on_exec);
        break;
      case DescriptorKind::event:
        placed = place(
            ::eventfd(static_cast<unsigned>(descriptor.count), EFD_CLOEXEC | (descriptor.status_flags & O_NONBLOCK)),
            descriptor.number, descriptor.close_on_exec);
        break;
      case DescriptorKind::null:
        placed = place(::open("/dev/null", O_CLOEXEC | descriptor.status_flags), descriptor.number,
                       descriptor.close_on_exec);
        break;
      case DescriptorKind::pipe_read: {
        const Descriptor* other = nullptr;
        for (const Descriptor& candidate : descriptors) {
          if (candidate.kind == DescriptorKind::pipe_write && candidate.identity == descriptor.identity)
            other = &candidate;
        }
        int ends[2];
        placed = other != nullptr && ::pipe2(ends, O_CLOEXEC) == 0;
        if (!placed) break;
        if (descriptor.count > 0 && ::write(ends[1], descriptor.bytes, descriptor.count) < 0) placed = false;
        ::fcntl(ends[0], F_SETFL, descriptor.status_flags);
        ::fcntl(ends[1], F_SETFL, other->status_flags);
        placed = place(ends[0], descriptor.number, descriptor.close_on_exec) &&
                 place(ends[1], other->number, other->close_on_exec);
        break;
      }
      case DescriptorKind::pipe_write: break;  // with its other end
    }
    if (!placed) return "descriptors are short";
  }
  for (const Watch& watch : image.records<Watch>(header.watches)) {
    epoll_event event;
    event.events = watch.events & ~(EPOLLERR | EPOLLHUP);
    event.data.u64 = watch.data;
    if (::epoll_ctl(watch.epoll, EPOLL_CTL_ADD, watch.number, &event) < 0) return "a descriptor cannot be watched";
  }
  return nullptr;
}

// On the thread's own stack, below what it uses.
uint64_t place_entry(const Thread& thread) {
  const uint64_t at = (thread.rsp - kRedZone - sizeof(Entry)) & ~uint64_t{15};
  Entry& entry = *reinterpret_cast<Entry*>(at);
  std::memset(&entry, 0, sizeof entry);
  entry.rseq = thread.rseq, entry.rseq_bytes = thread.rseq_bytes, entry.rseq_signature = thread.rseq_signature;
  entry.robust_list = thread.robust_list, entry.robust_list_bytes = thread.robust_list_bytes;
  auto& to = entry.context;
  to.flags = kContextSegment | kContextStrictSegment;
  to.stack_flags = SS_DISABLE;
  to.r8 = thread.r8, to.r9 = thread.r9, to.r10 = thread.r10, to.r11 = thread.r11, to.r12 = thread.r12;
  to.r13 = thread.r13, to.r14 = thread.r14, to.r15 = thread.r15, to.rdi = thread.rdi, to.rsi = thread.rsi;
  to.rbp = thread.rbp, to.rbx = thread.rbx, to.rdx = thread.rdx, to.rax = thread.rax, to.rcx = thread.rcx;
  to.rsp = thread.rsp, to.rip = thread.rip, to.rflags = thread.rflags;
  to.cs = 0x33, to.ss = 0x2b;
  to.signal_mask = thread.signal_mask;
  return at;
}

// No thread may find the area of one that has gone in the kernel's books.
void clear_rseq(const Thread& thread) {
  if (thread.rseq == 0) return;
  auto* area = reinterpret_cast<struct rseq*>(thread.rseq);
  area->cpu_id_start = 0;
  area->cpu_id = static_cast<uint32_t>(RSEQ_CPU_ID_UNINITIALIZED);
  area->rseq_cs = 0;
}

bool give_up_rseq() {
  if (__rseq_size == 0) return true;
  const auto own = reinterpret_cast<uint64_t>(__builtin_thread_pointer()) + static_cast<uint64_t>(__rseq_offset);
  return ::syscall(SYS_rseq, own, 32, RSEQ_FLAG_UNREGISTER, RSEQ_SIG) == 0;
}

// Of the one program that this process becomes.
Image image;
OwnMappings own;

}  // namespace

const char* open_image(const char* path) {
  if (const char* why = image.open(path)) return why;
  if (!find_own_mappings(own)) return "/proc is not mounted";
  return check_fits(image, own);
}

bool is_in_the_way() {
  for (const Region& region : image.records<Region>(image.header().regions)) {
    for (int i = 0; i < own.count; ++i) {
      if (own.all[i].start < region.end && region.start < own.all[i].end) return true;
    }
  }
  return false;
}

const char* become_program(int argc, char** argv, char** environment) {
  const Header& header = image.header();
  if (const char* why = map_memory(image, own)) return why;
  if (const char* why = open_descriptors(image)) return why;
  if (!give_up_rseq()) return "this thread cannot be unregistered from rseq";

  auto& start = *reinterpret_cast<ProgramStart*>(header.start_address);
  for (int signal = 1; signal <= kSignals; ++signal) {
    if (signal == SIGKILL || signal == SIGSTOP) continue;
    ::syscall(SYS_rt_sigaction, signal, &start.actions[signal - 1], nullptr, sizeof(uint64_t));
  }
  start.argument_count = static_cast<uint32_t>(argc);
  start.arguments = argv;
  start.environment = environment;
  // Its C library grows its heap from here on: what lies behind its own end belongs to others in the kernel's books.
  *start.program_break = ::sbrk(0);
  start.started = 1;

  const auto threads = image.records<Thread>(header.threads);
  constexpr uint64_t kThreadFlags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
                                    CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
  sigset_t all, before;
  sigfillset(&all);
  ::sigprocmask(SIG_SETMASK, &all, &before);
  for (uint64_t i = 1; i < threads.count; ++i) {
    const Thread& thread = threads.first[i];
    clear_rseq(thread);
    // parent_tid is the third argument of the call, child_tid the fourth; both are where the C library keeps it.
    if (stasis_clone(kThreadFlags, place_entry(thread), thread.tid_address, thread.fs_base) < 0) {
      ::sigprocmask(SIG_SETMASK, &before, nullptr);
      return "a thread cannot be started";
    }
  }
  const Thread& main = threads.first[0];
  clear_rseq(main);
  *reinterpret_cast<int32_t*>(main.tid_address) =
      static_cast<int32_t>(::syscall(SYS_set_tid_address, main.tid_address));
  const uint64_t entry = place_entry(main), fs_base = main.fs_base;
  image.close();
  stasis_enter_main(entry, fs_base);
}

}  // namespace stasis
