#include "program/write_image.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "base/lines.h"
#include "base/native_error.h"
#include "base/page.h"
#include "base/program_image.h"
#include "base/sys.h"
#include "capture/page_runs.h"
#include "capture/zero_pages.h"
#include "trace/frozen_tree.h"
#include "trace/thread_state.h"

namespace stasis {
namespace {

using namespace program_image;

constexpr uint64_t kPatienceMs = 120'000;
constexpr uint64_t kJoinedPages = 16;
constexpr uint64_t kTakenWhole = 1 << 20;  // V8's heap comes in pieces of 256 KiB

[[noreturn]] void become_program(const char* preloaded, char** words, int told) {
  const int null = ::open("/dev/null", O_RDWR);
  for (int fd = STDIN_FILENO; fd < STDERR_FILENO; ++fd) ::dup2(null, fd);
  for (int fd = STDERR_FILENO + 1; fd < kFirstDescriptor; ++fd) {
    if (fd != told) ::dup2(null, fd);
  }
  const std::string asked = std::string(kAskedBy) + "=" + std::to_string(told);
  const std::string preload = std::string("LD_PRELOAD=") + preloaded;
  char* environment[] = {const_cast<char*>(asked.c_str()), const_cast<char*>(preload.c_str()),
                         const_cast<char*>("GLIBC_TUNABLES=glibc.malloc.arena_max=1"), nullptr};
  ::execve(words[0], words, environment);
  ::_exit(127);
}

class Child {
 public:
  Child(const char* preloaded, char** words) {
    int ends[2];
    if (::pipe(ends) < 0) throw NativeError::from_errno("pipe", errno);
    pid_ = ::fork();
    if (pid_ < 0) throw NativeError::from_errno("fork", errno);
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::close(ends[0]);
      become_program(preloaded, words, ends[1]);
    }
    ::close(ends[1]);
    told_ = UniqueFd(ends[0]);
  }
  ~Child() {
    ::kill(pid_, SIGKILL);
    int status;
    sys::try_waitpid(pid_, &status, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  pid_t pid() const { return pid_; }

  uint64_t await_start_address(const Deadline& deadline) {
    uint64_t address = 0;
    pollfd readable{told_.borrow(), POLLIN, 0};
    if (::poll(&readable, 1, deadline.remaining_ms()) <= 0) throw NativeError("deadline", "the program does not start");
    if (::read(told_.borrow(), &address, sizeof address) != sizeof address)
      throw NativeError("unsupported", "the program ends before it waits to be started");
    return address;
  }

 private:
  pid_t pid_ = 0;
  UniqueFd told_;
};

struct Image {
  Header header{};
  std::vector<File> files;
  std::vector<Region> regions;
  std::vector<Run> runs;
  std::vector<Thread> threads;
  std::vector<Descriptor> descriptors;
  std::vector<Watch> watches;
  std::string names;
};

bool may_begin_anew(uint64_t number) {
  return number == SYS_futex || number == SYS_epoll_wait || number == SYS_epoll_pwait;
}

// False: somebody is still at work.
bool capture_threads(const FrozenTree& tree, uint64_t start_address, Image& image, std::string& busy) {
  const TracedProcess& process = tree.root();
  int tid_offset = -1;
  for (const TracedThread& thread : process.threads) {
    const pid_t tid = thread.host_tid;
    const user_regs_struct from = read_registers(tid);
    busy = "a thread of the program does not come to rest: " + std::to_string(static_cast<int64_t>(from.orig_rax));
    if (static_cast<int64_t>(from.orig_rax) < 0 || !may_begin_anew(from.orig_rax)) return false;
    // -EINTR, or one of the kernel's own -ERESTART*: it waited.
    const int64_t result = static_cast<int64_t>(from.rax);
    if (result != -EINTR && !(result <= -512 && result >= -516)) return false;
    const bool leader = tid == process.host_pid;
    if (leader && from.rdi != start_address) return false;
    Thread to{};
    to.r15 = from.r15, to.r14 = from.r14, to.r13 = from.r13, to.r12 = from.r12, to.rbp = from.rbp, to.rbx = from.rbx;
    to.r11 = from.r11, to.r10 = from.r10, to.r9 = from.r9, to.r8 = from.r8, to.rcx = from.rcx, to.rdx = from.rdx;
    to.rsi = from.rsi, to.rdi = from.rdi, to.rflags = from.eflags, to.rsp = from.rsp;
    to.rax = from.orig_rax;
    to.rip = from.rip - 2;  // of the instruction `syscall`
    to.fs_base = from.fs_base;
    to.signal_mask = read_signal_mask(tid);
    const RseqState rseq = read_rseq(tid, process.host_pid, from.rip);
    to.rseq = rseq.address, to.rseq_bytes = rseq.size_bytes, to.rseq_signature = rseq.signature;
    sys::try_syscall(SYS_get_robust_list, static_cast<uint64_t>(tid), reinterpret_cast<uint64_t>(&to.robust_list),
                     reinterpret_cast<uint64_t>(&to.robust_list_bytes));
    // The C library keeps the number at the same place behind the thread pointer of each thread.
    int32_t block[512] = {};
    sys::try_process_vm_read(process.host_pid, block, to.fs_base, sizeof block);
    if (tid_offset < 0) {
      const auto* found = std::find(std::begin(block), std::end(block), tid);
      if (found == std::end(block)) throw NativeError("unsupported", "the C library keeps no number of a thread");
      tid_offset = static_cast<int>(found - block);
    }
    if (block[tid_offset] != tid) throw NativeError("unsupported", "the C library keeps no number of a thread");
    to.tid_address = to.fs_base + static_cast<uint64_t>(tid_offset) * sizeof(int32_t);
    image.threads.push_back(to);
  }
  return true;
}

File file_record(const std::string& name, const struct stat& status, Image& image) {
  const auto ns = [](const timespec& time) { return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec; };
  const File file{image.names.size(), status.st_ino, static_cast<uint64_t>(status.st_size), ns(status.st_mtim),
                  ns(status.st_ctim)};
  image.names += name;
  image.names += '\0';
  return file;
}

int32_t add_file(const ProcDir& proc, const Vma& vma, std::map<std::string, int32_t>& known, Image& image) {
  const auto [at, is_new] = known.try_emplace(vma.name, static_cast<int32_t>(image.files.size()));
  if (!is_new) return at->second;
  struct stat named, mapped;
  if (::stat(vma.name.c_str(), &named) < 0 ||
      ::fstatat(proc.borrow(), map_files_name(vma.start, vma.end).c_str(), &mapped, 0) < 0 ||
      named.st_dev != mapped.st_dev || named.st_ino != mapped.st_ino) {
    throw NativeError("unsupported", "a mapped file is not under its name").with_path(vma.name);
  }
  image.files.push_back(file_record(vma.name, named, image));
  return at->second;
}

int32_t protection_of(const Vma& vma) {
  return (vma.readable ? PROT_READ : 0) | (vma.writable ? PROT_WRITE : 0) | (vma.executable ? PROT_EXEC : 0);
}

// A mapping more costs each start what some ten pages cost that are read from the image and not zero by themselves.
void add_run(const Vma& vma, uint64_t start, uint64_t end, Image& image) {
  const bool is_small = vma.inode == 0 && vma.end - vma.start <= kTakenWhole;
  if (!image.runs.empty() && image.runs.back().start >= vma.start) {
    Run& last = image.runs.back();
    if (start < last.end) return;  // taken whole
    if (start - last.end <= kJoinedPages * kPageBytes) {
      last.end = end;
      return;
    }
  }
  if (is_small) start = vma.start, end = vma.end;
  image.runs.push_back({start, end, 0, protection_of(vma), 0});
}

void capture_regions(const ProcDir& proc, Image& image) {
  const std::vector<Vma> vmas = parse_maps(proc.read("maps"));
  const UniqueFd pagemap = sys::openat(proc.borrow(), "pagemap", O_RDONLY);
  std::vector<Vma> own;
  std::map<std::string, int32_t> known;
  Header& header = image.header;
  for (const Vma& vma : vmas) {
    if (vma.name == "[vsyscall]") continue;
    if (vma.name == "[vdso]") {
      header.vdso_start = vma.start;
      header.vdso_bytes = vma.end - vma.start;
      continue;
    }
    if (vma.name.starts_with("[vvar")) {
      if (header.vvar_start == 0) header.vvar_start = vma.start;
      header.vvar_bytes = vma.end - header.vvar_start;
      continue;
    }
    if (vma.shared) throw NativeError("unsupported", "the program shares memory").with_path(vma.name);
    own.push_back(vma);
    const bool has_file = vma.inode != 0;
    uint64_t start = vma.start;
    // It grows as far as the caller's limit lets it; ours is what a program of ours gets.
    if (vma.name == "[stack]") start = vma.end - (8u << 20);
    image.regions.push_back({start, vma.end, has_file ? vma.offset : 0,
                             has_file ? add_file(proc, vma, known, image) : -1, protection_of(vma)});
  }
  size_t next = 0;
  for (const PageRun& found : find_page_runs(pagemap.borrow(), own)) {
    uint64_t start = found.address;
    const uint64_t end = found.address + found.page_count * kPageBytes;
    while (start < end) {
      while (own[next].end <= start) ++next;
      const uint64_t stop = std::min(end, own[next].end);
      add_run(own[next], start, stop, image);
      start = stop;
    }
  }
}

uint64_t number_after(std::string_view text, std::string_view name, int base) {
  const size_t at = text.find(name);
  if (at == std::string_view::npos) return 0;
  size_t from = text.find_first_not_of(" \t", at + name.size());
  uint64_t value = 0;
  if (from != std::string_view::npos) std::from_chars(text.data() + from, text.data() + text.size(), value, base);
  return value;
}

// libuv keeps a lock in a pipe: whoever has read its byte holds it.
void take_bytes(const ProcDir& proc, Descriptor& descriptor) {
  const UniqueFd pipe =
      sys::openat(proc.borrow(), ("fd/" + std::to_string(descriptor.number)).c_str(), O_RDONLY | O_NONBLOCK);
  int available = 0;
  sys::try_ioctl(pipe.borrow(), FIONREAD, &available);
  if (available < 0 || static_cast<uint64_t>(available) > kPipeBytes)
    throw NativeError("unsupported", "a pipe of the program is in use");
  descriptor.count = static_cast<uint64_t>(available);
  if (available > 0 && ::read(pipe.borrow(), descriptor.bytes, descriptor.count) != available)
    throw NativeError("unsupported", "a pipe of the program cannot be read");
}

void capture_descriptors(const ProcDir& proc, Image& image) {
  for (const int32_t number : proc.numbers("fd")) {
    if (number <= STDERR_FILENO) continue;
    const std::string target = proc.readlink(("fd/" + std::to_string(number)).c_str());
    const std::string info = proc.read(("fdinfo/" + std::to_string(number)).c_str());
    const uint64_t flags = number_after(info, "flags:", 8);
    Descriptor descriptor{number,
                          DescriptorKind::null,
                          static_cast<int32_t>(flags & ~uint64_t{O_CLOEXEC}),
                          (flags & O_CLOEXEC) != 0,
                          0,
                          0,
                          {}};
    if (target == "anon_inode:[eventpoll]") {
      descriptor.kind = DescriptorKind::epoll;
      size_t at = 0;
      while ((at = info.find("tfd:", at)) != std::string::npos) {
        const std::string_view line = std::string_view(info).substr(at);
        image.watches.push_back({number, static_cast<int32_t>(number_after(line, "tfd:", 10)),
                                 static_cast<uint32_t>(number_after(line, "events:", 16)), 0,
                                 number_after(line, "data:", 16)});
        at += 4;
      }
    } else if (target == "anon_inode:[eventfd]") {
      descriptor.kind = DescriptorKind::event;
      descriptor.count = number_after(info, "eventfd-count:", 16);
    } else if (target.starts_with("pipe:")) {
      descriptor.kind = (flags & O_ACCMODE) == O_RDONLY ? DescriptorKind::pipe_read : DescriptorKind::pipe_write;
      descriptor.identity = number_after(target, "pipe:[", 10);
      if (descriptor.kind == DescriptorKind::pipe_read) take_bytes(proc, descriptor);
    } else if (target != "/dev/null") {
      throw NativeError("unsupported", "the program has opened what no image keeps").with_path(target);
    }
    if (number < kFirstDescriptor)
      throw NativeError("unsupported", "a descriptor of the program is in the way of its caller's");
    image.descriptors.push_back(descriptor);
  }
}

template <typename Record>
Table place(std::string& out, const std::vector<Record>& records) {
  const Table table{out.size(), records.size()};
  out.append(reinterpret_cast<const char*>(records.data()), records.size() * sizeof(Record));
  return table;
}

uint64_t up_to_page(uint64_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

// Whole or not at all, whenever we are killed and whatever the disk has by then: under another name until then.
class ImageFile {
 public:
  explicit ImageFile(std::string path) : path_(std::move(path)), hidden_(path_ + ".new") {
    // It says which values guard stacks: for root alone, or whoever else makes it.
    file_ = sys::openat(AT_FDCWD, hidden_.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW, 0600);
    // Whoever has renamed it in between has let go of it too.
    struct stat own, named;
    if (::flock(file_.borrow(), LOCK_EX | LOCK_NB) < 0 || ::fstat(file_.borrow(), &own) < 0 ||
        ::stat(hidden_.c_str(), &named) < 0 || own.st_ino != named.st_ino)
      throw NativeError("conflict", "another setup is writing it").with_path(path_);
    // What a killed one has left.
    if (::fchmod(file_.borrow(), 0600) < 0) throw failed("fchmod", errno);
    set_length(0);
  }

  void put(const void* bytes, uint64_t count, uint64_t offset) {
    const auto written = sys::try_pwrite(file_.borrow(), bytes, count, offset);
    if (!written.ok() || written.value != count) throw failed("pwrite", written.error);
  }

  // Pages of the program. Those of zeroes are left out: the file has holes there.
  void put_memory(pid_t pid, uint64_t start, uint64_t bytes, uint64_t offset) {
    if (buffer_.size() < bytes) buffer_.resize(bytes);
    const auto got = sys::try_process_vm_read(pid, buffer_.data(), start, bytes);
    if (!got.ok() || got.value != bytes)
      throw NativeError::from_errno("process_vm_readv", got.error).with_address(start);
    for (uint64_t at = 0, end; at < bytes; at = end) {
      const bool zero = is_zero_page(buffer_.data() + at);
      for (end = at + kPageBytes; end < bytes && is_zero_page(buffer_.data() + end) == zero;) end += kPageBytes;
      if (!zero) put(buffer_.data() + at, end - at, offset + at);
    }
  }

  void set_length(uint64_t bytes) {
    if (::ftruncate(file_.borrow(), static_cast<off_t>(bytes)) < 0) throw failed("ftruncate", errno);
  }

  void commit() {
    if (::fsync(file_.borrow()) < 0) throw failed("fsync", errno);
    if (::rename(hidden_.c_str(), path_.c_str()) < 0) throw failed("rename", errno);
  }

 private:
  NativeError failed(const char* call, int error_number) const {
    return NativeError::from_errno(call, error_number).with_path(path_);
  }

  std::string path_, hidden_;
  UniqueFd file_;
  std::vector<unsigned char> buffer_;
};

void write_image(const char* path, pid_t pid, Image& image) {
  ImageFile file(path);
  Header& header = image.header;
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  read_cpu(header.cpu);
  utsname kernel;
  ::uname(&kernel);
  std::snprintf(header.kernel, sizeof header.kernel, "%s %s", kernel.release, kernel.version);

  std::string head(sizeof header, '\0');
  header.files = place(head, image.files);
  header.regions = place(head, image.regions);
  header.threads = place(head, image.threads);
  header.descriptors = place(head, image.descriptors);
  header.watches = place(head, image.watches);
  header.names = {head.size(), image.names.size()};
  head += image.names;
  head.resize((head.size() + 7) / 8 * 8);
  // The runs come last: where their pages are depends on how long the head is.
  header.vdso_offset = up_to_page(head.size() + image.runs.size() * sizeof(Run));
  file.put_memory(pid, header.vdso_start, header.vdso_bytes, header.vdso_offset);
  header.head_bytes = header.file_bytes = up_to_page(header.vdso_offset + header.vdso_bytes);
  for (Run& run : image.runs) {
    run.image_offset = header.file_bytes;
    file.put_memory(pid, run.start, run.end - run.start, run.image_offset);
    header.file_bytes += run.end - run.start;
  }
  header.runs = place(head, image.runs);
  std::memcpy(head.data(), &header, sizeof header);
  file.set_length(header.file_bytes);
  file.put(head.data(), head.size(), 0);
  file.commit();
}

// What the program was made from is in no mapping of it: snapshots, sources.
void add_words(char** words, Image& image) {
  for (; *words != nullptr; ++words) {
    struct stat status;
    if (**words == '/' && ::stat(*words, &status) == 0 && S_ISREG(status.st_mode))
      image.files.push_back(file_record(*words, status, image));
  }
}

int64_t read_clock(pid_t pid, uint64_t start_address) {
  ProgramStart start;
  const auto got = sys::try_process_vm_read(pid, &start, start_address, sizeof start);
  if (!got.ok() || got.value != sizeof start) throw NativeError::from_errno("process_vm_readv", got.error);
  return start.monotonic_ns;
}

void make_image(const char* path, const char* preloaded, char** words) {
  const Deadline deadline = Deadline::in_ms(kPatienceMs);
  Child program(preloaded, words);
  const uint64_t start_address = program.await_start_address(deadline);
  std::string busy = "the program does not stay alone";
  for (;;) {
    FreezeRequest request;
    request.root_host_pid = program.pid();
    request.deadline = deadline;
    FrozenTree tree = FrozenTree::freeze(request);
    Image image;
    image.header.start_address = start_address;
    // Of children that have ended something is left until it is asked for; those of the image have none.
    const auto& processes = tree.processes();
    const bool alone =
        std::all_of(processes.begin() + 1, processes.end(), [](const auto& child) { return child->zombie; });
    if (alone && capture_threads(tree, start_address + offsetof(ProgramStart, started), image, busy)) {
      capture_regions(tree.root().proc, image);
      capture_descriptors(tree.root().proc, image);
      add_words(words, image);
      image.header.monotonic_ns = read_clock(program.pid(), start_address);
      write_image(path, program.pid(), image);
      return;
    }
    deadline.check(busy.c_str());
  }
}

}  // namespace

int run_program_image_command(int argc, char** argv) {
  if (argc < 5) return 2;
  prepare_signal_waiting();
  try {
    make_image(argv[2], argv[3], argv + 4);
    return 0;
  } catch (const NativeError& error) {
    std::string why = error.call.empty() ? error.action : error.call + ": " + std::strerror(error.error_number);
    if (!error.path.empty()) why += " (" + error.path + ")";
    std::fprintf(stderr, "cannot write an image of %s: %s; it starts without one, more slowly\n", argv[4], why.c_str());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cannot write an image of %s: %s; it starts without one, more slowly\n", argv[4],
                 error.what());
    return 1;
  }
}

}  // namespace stasis
