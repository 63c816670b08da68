// A tiny program, and hand-written plans that restore it: two processes, two
// threads, in a pid namespace of its own or not. For tests of whole restores.
#pragma once

#include <linux/filter.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "executor/testing_plan.h"

namespace stasis::testing {

constexpr uint64_t kCode = 0x400000, kData = 0x600000, kMemData = 0x601000, kVdso = 0x7f0000000000;
constexpr uint64_t kMagic = 0x1122334455667788;

}  // namespace stasis::testing

// The program: position-independent, no stack. r12: message, r13: expected pid
// of the thread (0: any), r14: what to do afterwards (0 wait for rbp children and
// the other thread, then exit; 1 set the flag and pause; 2 exit). r15 and xmm0
// hold kMagic.
asm(R"(
.pushsection .rodata
.globl test_program_start, test_program_written, test_program_end
test_program_start:
  movabs $0x1122334455667788, %rbx
  cmp %rbx, %r15
  jne 9f
  movq %xmm0, %rax
  cmp %rbx, %rax
  jne 9f
  mov $0x600000, %eax
  cmp %rbx, (%rax)
  jne 9f
  cmp %rbx, 0x1000(%rax)
  jne 9f
  mov %fs:0, %rax
  cmp %rbx, %rax
  jne 9f
  mov $186, %eax
  syscall
  test %r13, %r13
  jz 1f
  cmp %rax, %r13
  jne 9f
1:
  mov $1, %eax
  mov $1, %edi
  mov %r12, %rsi
  mov $5, %edx
  syscall
test_program_written:
  cmp $1, %r14
  je 3f
  ja 4f
6:
  mov $61, %eax
  mov $-1, %rdi
  xor %esi, %esi
  xor %edx, %edx
  xor %r10d, %r10d
  syscall
  dec %rbp
  jnz 6b
2:
  pause
  mov $0x600000, %eax
  cmpl $1, 8(%rax)
  jne 2b
  mov $1, %eax
  mov $1, %edi
  lea 8f(%rip), %rsi
  mov $5, %edx
  syscall
4:
  mov $231, %eax
  xor %edi, %edi
  syscall
3:
  mov $0x600000, %eax
  movl $1, 8(%rax)
5:
  mov $34, %eax
  syscall
  jmp 5b
9:
  mov $1, %eax
  mov $1, %edi
  lea 7f(%rip), %rsi
  mov $5, %edx
  syscall
  mov $231, %eax
  mov $1, %edi
  syscall
8: .ascii "done\n"
7: .ascii "bad!\n"
test_program_end:
.popsection
)");
extern "C" const char test_program_start[], test_program_written[], test_program_end[];

namespace stasis::testing {

struct TinyOptions {
  bool pid_namespace = true;
  bool helper = false;  // the child's parent is a helper that leaves
  bool zombie = false;
  bool stopped_child = false;
  bool interrupted = false;  // every thread was stopped in its write, which has to be restarted
};

struct TinyPlan : TestRequest {
  uint32_t root, child, thread;
};

inline std::string pages() {
  std::string content(3 * 4096, '\0');
  std::memcpy(content.data(), test_program_start, static_cast<size_t>(test_program_end - test_program_start));
  std::memcpy(content.data() + 2048, "root\nchld\nthrd\n", 15);
  std::memcpy(content.data() + 4096, &kMagic, 8);
  std::memcpy(content.data() + 8192, &kMagic, 8);
  return content;
}

inline void fill_release(TinyPlan& request, uint32_t task, uint64_t message, uint64_t expected_tid, uint64_t afterwards,
                         const TinyOptions& options, uint64_t child_count = 0) {
  user_regs_struct registers{};
  registers.rip = kCode;
  registers.orig_rax = ~0ull;
  registers.eflags = 0x202;
  registers.cs = 0x33;
  registers.ss = 0x2b;
  registers.fs_base = kData;  // the magic number at %fs:0
  registers.rbp = child_count;
  registers.r12 = message;
  registers.r13 = expected_tid;
  registers.r14 = afterwards;
  registers.r15 = kMagic;
  if (options.interrupted) {
    registers.rip = kCode + static_cast<uint64_t>(test_program_written - test_program_start);
    registers.rax = static_cast<uint64_t>(-512);  // ERESTARTSYS
    registers.orig_rax = SYS_write;
    registers.rdi = 1;
    registers.rsi = message;
    registers.rdx = 5;
  }
  std::string xstate(576, '\0');
  const uint16_t control_word = 0x37f;
  const uint32_t mxcsr = 0x1f80;
  const uint64_t in_use = 3;
  std::memcpy(xstate.data(), &control_word, 2);
  std::memcpy(xstate.data() + 24, &mxcsr, 4);
  std::memcpy(xstate.data() + 160, &kMagic, 8);  // xmm0
  std::memcpy(xstate.data() + 512, &in_use, 8);
  PlanRelease& release = request.plan().tasks[task].release;
  release.registers = request.keep(std::string(reinterpret_cast<const char*>(&registers), sizeof registers));
  release.xstate = request.keep(xstate);
}

inline void add_memory(TinyPlan& request, uint32_t task, uint32_t exe_slot, uint32_t vdso_slot) {
  const Plan& plan = request.plan();
  const uint64_t hole_end = plan.hole_address + plan.hole_length_bytes;
  const auto add = [&](PlanStep added) { request.add_step(task, kPhaseMemory, std::move(added)); };
  const auto map = [&](uint64_t address, uint64_t protection) {
    add(expecting(step("mmap", {imm(address), imm(4096), imm(protection),
                                imm(MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE), imm(~0ull), imm(0)}),
                  address));
  };
  add(step("munmap", {imm(0), imm(plan.hole_address)}));
  add(step("munmap", {imm(hole_end), imm(0x7ffffffff000 - hole_end)}));
  add(step("arch_prctl", {imm(0x2003), imm(kVdso)}, vdso_slot));
  map(kCode, PROT_READ);  // executable when it is filled
  map(kData, PROT_READ | PROT_WRITE);
  map(kMemData, PROT_READ);
  prctl_mm_map mm{};
  mm.start_code = kCode;
  mm.end_code = kCode + 4096;
  mm.start_data = kData;
  mm.end_data = kData + 4096;
  mm.start_brk = mm.brk = kMemData;
  mm.start_stack = kData;
  mm.arg_start = mm.env_start = kData;
  mm.arg_end = mm.env_end = kData + 16;
  const uint64_t auxv[] = {33, kVdso, 0, 0};  // AT_SYSINFO_EHDR; not where the vdso is, see vdso_slot
  const uint32_t auxv_blob = request.add_struct(auxv);
  mm.auxv_size = sizeof auxv;
  const uint32_t map_blob =
      request.add_struct(mm, {{offsetof(prctl_mm_map, auxv), PlanRelocation::Kind::blob, auxv_blob},
                              {offsetof(prctl_mm_map, exe_fd), PlanRelocation::Kind::slot32, exe_slot}});
  add(expecting(step("prctl", {imm(PR_SET_MM), imm(PR_SET_MM_MAP), blob(map_blob), imm(sizeof mm), imm(0)}), 0));
  const uint32_t uffd_slot = request.new_slot();
  add(step("userfaultfd", {imm(O_CLOEXEC | UFFD_USER_MODE_ONLY)}, uffd_slot));
  PlanTask& planned = request.plan().tasks[task];
  planned.uffd_slot = uffd_slot;
  planned.uffd_ranges = {{kCode, kData + 4096 - kCode}};  // and what is not mapped between them
  planned.fills = {{PlanFill::Method::uffd, kCode, 1, 0, 0},
                   {PlanFill::Method::uffd, kData, 1, 0, 4096},
                   {PlanFill::Method::mem, kMemData, 1, 0, 8192}};
  request.add_step(task, kPhaseFill, step("await_fill", {imm(1)}));
  request.add_step(task, kPhaseFill, step("mprotect", {imm(kCode), imm(4096), imm(PROT_READ | PROT_EXEC)}));
  request.add_step(task, kPhaseThreads, step("close", {slot(uffd_slot)}));
}

// What task does what, in an order that fits the phases.
inline TinyPlan tiny_plan(const TinyOptions& options) {
  TinyPlan request;
  Plan& plan = request.plan();
  plan.page_files = {"pages-1.img"};
  const uint32_t output = request.add_external(10), high = request.new_slot(), exe = request.new_slot();
  request.root = request.add_task(TaskKind::process, 0);
  uint32_t parent = request.root;
  if (options.helper) parent = request.add_task(TaskKind::helper, request.root);
  request.child = request.add_task(TaskKind::process, parent);
  request.thread = request.add_task(TaskKind::thread, request.root);
  const bool numbered = options.pid_namespace;
  if (numbered) {
    plan.tasks[request.root].clone_flags = CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNS;
    plan.tasks[request.root].set_tid = {1};
    plan.tasks[request.child].set_tid = {500};
    plan.tasks[request.thread].set_tid = {77};
    if (options.helper) plan.tasks[parent].set_tid = {300};
    request.add_step(request.root, kPhaseNamespaces, step("sethostname", {blob(request.add_blob("tiny")), imm(4)}));
  }
  request.add_step(request.root, kPhaseFiles, step("fcntl", {slot(output), imm(F_DUPFD), imm(700)}, high));
  request.add_step(request.root, kPhaseFiles,
                   step("openat",
                        {imm(static_cast<uint64_t>(AT_FDCWD)), blob(request.add_blob(std::string("/bin/true", 10))),
                         imm(O_RDONLY), imm(0)},
                        exe));
  request.add_step(request.root, kPhaseTasks, step("setsid", {}));
  if (options.helper) {
    request.add_step(request.root, kPhaseTasks, step("clone_process", {imm(parent)}));
    request.add_step(parent, kPhaseTasks, step("setsid", {}));
  }
  request.add_step(parent, kPhaseTasks, step("clone_process", {imm(request.child)}));
  if (options.zombie) {
    const uint32_t zombie = request.add_task(TaskKind::zombie, request.root);
    if (numbered) plan.tasks[zombie].set_tid = {600};
    request.add_step(request.root, kPhaseTasks, step("clone_process", {imm(zombie)}));
    request.add_step(zombie, kPhaseDescriptors, step("exit_now", {imm(SIGTERM)}));
    // Exactly one SIGCHLD, and it is there when the next phase begins.
    const uint64_t child_signal = 1u << (SIGCHLD - 1);
    const timespec no_time{};
    const uint32_t set = request.add_struct(child_signal), now = request.add_struct(no_time);
    request.add_step(request.root, kPhaseThreads,
                     expecting(step("rt_sigtimedwait", {blob(set), imm(0), blob(now), imm(8)}), SIGCHLD));
    request.add_step(
        request.root, kPhaseThreads,
        expecting(step("rt_sigtimedwait", {blob(set), imm(0), blob(now), imm(8)}), static_cast<uint64_t>(-EAGAIN)));
  }
  request.add_step(request.child, kPhaseGroups, step("setpgid", {imm(0), imm(0)}));
  for (const uint32_t task : {request.root, request.child}) {
    request.add_step(task, kPhaseDescriptors, step("dup3", {slot(high), imm(1), imm(0)}));
    request.add_step(task, kPhaseDescriptors, step("dup3", {slot(exe), imm(3), imm(0)}));
    add_memory(request, task, exe, request.new_slot());
    request.add_step(task, kPhaseThreads, step("close_range", {imm(2), imm(~0u), imm(0)}));
  }
  request.add_step(request.root, kPhaseThreads, step("clone_thread", {imm(request.thread)}));
  // The child installs a filter that would kill the interpreter's futex and our munmap.
  const sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_gettid, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const uint32_t filter_blob = request.add_struct(filter);
  const sock_fprog program{6, nullptr};
  const uint32_t program_blob =
      request.add_struct(program, {{offsetof(sock_fprog, filter), PlanRelocation::Kind::blob, filter_blob}});
  request.add_step(request.child, kPhaseCredentials, step("setresuid", {imm(1000), imm(1000), imm(1000)}));
  request.add_step(request.child, kPhaseCredentials,
                   step("prctl", {imm(PR_SET_NO_NEW_PRIVS), imm(1), imm(0), imm(0), imm(0)}));
  request.add_step(request.child, kPhaseCredentials,
                   step("seccomp", {imm(SECCOMP_SET_MODE_FILTER), imm(0), blob(program_blob)}));
  fill_release(request, request.root, kCode + 2048, numbered ? 1 : 0, 0, options, options.zombie ? 2 : 1);
  fill_release(request, request.child, kCode + 2053, numbered ? 500 : 0, 2, options);
  fill_release(request, request.thread, kCode + 2058, numbered ? 77 : 0, 1, options);
  plan.tasks[request.child].stopped = options.stopped_child;
  return request;
}

struct Stage {
  TemporaryDirectory images;
  TemporaryDirectory scratch;
  std::string state = scratch.path() + "/state";
  UniqueFd images_fd = images.open();
  UniqueFd out_read, out_write;

  Stage() {
    become_subreaper();
    images.write("pages-1.img", pages());
    ::mkdir(state.c_str(), 0700);
    UniqueFd(::open((state + "/state.json").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600)).reset();
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) < 0) throw Failed("pipe2");
    out_read = UniqueFd(ends[0]);
    out_write = UniqueFd(ends[1]);
  }
  void add_undo(ExecuteRequest& request) const { request.undo = {{UndoAction::Kind::remove_tree, state}}; }
  bool state_exists() const { return ::access(state.c_str(), F_OK) == 0; }
};

inline void expect_kind(const std::optional<Reply>& reply, FromCoreKind kind) {
  if (!reply) throw Failed("the core hung up");
  if (reply->kind == FromCoreKind::failed && kind != FromCoreKind::failed) {
    const DecodedFailure failure = decode_failure(reply->body);
    throw Failed("failed: " + failure.reason + " " + failure.what + " " + failure.call + " errno " +
                 std::to_string(failure.error_number) + " task " + std::to_string(failure.task) + " phase " +
                 std::to_string(failure.phase) + " step " + std::to_string(failure.step) + " " + failure.op);
  }
  EXPECT_EQ(static_cast<int>(reply->kind), static_cast<int>(kind));
}

inline pid_t root_pid_of(const Reply& parked) {
  protozero::pbf_reader reader(parked.body);
  while (reader.next(1)) return reader.get_int32();
  return 0;
}

inline void print_timings(const char* title, const std::string& body, uint32_t field) {
  std::printf("        %s:", title);
  protozero::pbf_reader reader(body);
  while (reader.next()) {
    if (reader.tag() != field) {
      reader.skip();
      continue;
    }
    protozero::pbf_reader timing = reader.get_message();
    std::string phase;
    uint64_t start = 0, end = 0;
    while (timing.next()) {
      if (timing.tag() == 1)
        phase = timing.get_string();
      else if (timing.tag() == 2)
        start = timing.get_uint64();
      else
        end = timing.get_uint64();
    }
    std::printf(" %s %llu", phase.c_str(), static_cast<unsigned long long>((end - start) / 1000));
  }
  std::printf(" us\n");
}

inline std::string sorted_lines(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t at = 0; at + 5 <= text.size(); at += 5) lines.push_back(text.substr(at, 4));
  std::sort(lines.begin(), lines.end());
  std::string joined;
  for (const std::string& line : lines) joined += line + " ";
  return joined;
}

}  // namespace stasis::testing
