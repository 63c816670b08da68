// Whole restores of a tiny program by hand-written plans: two processes, two
// threads, in a pid namespace of its own or not.
#include <linux/filter.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "executor/execute_steps.h"
#include "executor/testing_plan.h"

using namespace stasis;
using namespace stasis::testing;

namespace {

constexpr uint64_t kCode = 0x400000, kData = 0x600000, kMemData = 0x601000, kVdso = 0x7f0000000000;
constexpr uint64_t kMagic = 0x1122334455667788;

}  // namespace

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

namespace {

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

std::string pages() {
  std::string content(3 * 4096, '\0');
  std::memcpy(content.data(), test_program_start, static_cast<size_t>(test_program_end - test_program_start));
  std::memcpy(content.data() + 2048, "root\nchld\nthrd\n", 15);
  std::memcpy(content.data() + 4096, &kMagic, 8);
  std::memcpy(content.data() + 8192, &kMagic, 8);
  return content;
}

void fill_release(TinyPlan& request, uint32_t task, uint64_t message, uint64_t expected_tid, uint64_t afterwards,
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

void add_memory(TinyPlan& request, uint32_t task, uint32_t exe_slot, uint32_t vdso_slot) {
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
  map(kCode, PROT_READ | PROT_EXEC);
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
  request.add_step(task, kPhaseThreads, step("close", {slot(uffd_slot)}));
}

// What task does what, in an order that fits the phases.
TinyPlan tiny_plan(const TinyOptions& options) {
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

void expect_kind(const std::optional<Reply>& reply, FromCoreKind kind) {
  if (!reply) throw Failed("the core hung up");
  if (reply->kind == FromCoreKind::failed && kind != FromCoreKind::failed) {
    const DecodedFailure failure = decode_failure(reply->body);
    throw Failed("failed: " + failure.reason + " " + failure.what + " " + failure.call + " errno " +
                 std::to_string(failure.error_number) + " task " + std::to_string(failure.task) + " phase " +
                 std::to_string(failure.phase) + " step " + std::to_string(failure.step) + " " + failure.op);
  }
  EXPECT_EQ(static_cast<int>(reply->kind), static_cast<int>(kind));
}

pid_t root_pid_of(const Reply& parked) {
  protozero::pbf_reader reader(parked.body);
  while (reader.next(1)) return reader.get_int32();
  return 0;
}

void print_timings(const char* title, const std::string& body, uint32_t field) {
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

std::string sorted_lines(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t at = 0; at + 5 <= text.size(); at += 5) lines.push_back(text.substr(at, 4));
  std::sort(lines.begin(), lines.end());
  std::string joined;
  for (const std::string& line : lines) joined += line + " ";
  return joined;
}

void restore_and_expect_output(const TinyOptions& options) {
  Stage stage;
  TinyPlan plan = tiny_plan(options);
  stage.add_undo(plan.request);
  CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()});
  stage.out_write.reset();
  core.send(ToCoreKind::execute, encode(plan.request));
  const auto parked = core.receive();
  expect_kind(parked, FromCoreKind::parked);
  print_timings("parked", parked->body, 3);
  core.send(ToCoreKind::release, "");
  const auto released = core.receive();
  expect_kind(released, FromCoreKind::released);
  print_timings("released", released->body, 1);
  if (options.stopped_child) {
    EXPECT_EQ(sorted_lines(read_until_end(stage.out_read.borrow(), 10)), "root thrd ");
    const pid_t root = root_pid_of(*parked);
    ::kill(root, SIGKILL);
  } else {
    EXPECT_EQ(sorted_lines(read_until_end(stage.out_read.borrow(), 20)), "chld done root thrd ");
  }
  expect_no_descendants();
  EXPECT(stage.state_exists());
}

void restores_into_a_pid_namespace() { restore_and_expect_output({}); }
void restores_without_namespaces() { restore_and_expect_output({.pid_namespace = false}); }
void restores_with_a_helper() { restore_and_expect_output({.helper = true}); }
void restores_with_a_helper_without_namespaces() {
  restore_and_expect_output({.pid_namespace = false, .helper = true});
}
void restores_a_zombie() { restore_and_expect_output({.zombie = true}); }
void leaves_a_stopped_process_stopped() { restore_and_expect_output({.stopped_child = true}); }

void restarts_an_interrupted_call() { restore_and_expect_output({.interrupted = true}); }

void aborts_when_parked() {
  Stage stage;
  TinyPlan plan = tiny_plan({});
  stage.add_undo(plan.request);
  CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()});
  core.send(ToCoreKind::execute, encode(plan.request));
  expect_kind(core.receive(), FromCoreKind::parked);
  core.send(ToCoreKind::abort, "");
  expect_kind(core.receive(), FromCoreKind::rolled_back);
  expect_no_descendants();
  EXPECT(!stage.state_exists());
}

void rolls_back_when_the_other_side_dies() {
  Stage stage;
  TinyPlan plan = tiny_plan({});
  stage.add_undo(plan.request);
  CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()});
  core.send(ToCoreKind::execute, encode(plan.request));
  expect_kind(core.receive(), FromCoreKind::parked);
  core.hang_up();
  expect_no_descendants();
  EXPECT(!stage.state_exists());
}

void fails_when_a_parked_task_is_killed() {
  Stage stage;
  TinyPlan plan = tiny_plan({});
  stage.add_undo(plan.request);
  CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()});
  core.send(ToCoreKind::execute, encode(plan.request));
  const auto parked = core.receive();
  expect_kind(parked, FromCoreKind::parked);
  ::kill(root_pid_of(*parked), SIGKILL);
  const auto failed = core.receive();
  expect_kind(failed, FromCoreKind::failed);
  EXPECT_EQ(decode_failure(failed->body).reason, "task_gone");
  expect_no_descendants();
  EXPECT(!stage.state_exists());
}

void names_the_step_that_fails() {
  Stage stage;
  TinyPlan plan = tiny_plan({});
  stage.add_undo(plan.request);
  plan.add_step(plan.child, kPhaseCredentials,
                step("chdir", {blob(plan.add_blob(std::string("/nonexistent/directory", 23)))}));
  CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()});
  core.send(ToCoreKind::execute, encode(plan.request));
  const auto reply = core.receive();
  expect_kind(reply, FromCoreKind::failed);
  const DecodedFailure failure = decode_failure(reply->body);
  EXPECT_EQ(failure.task, plan.child);
  EXPECT_EQ(failure.phase, kPhaseCredentials);
  EXPECT_EQ(failure.step, 3u);
  EXPECT_EQ(failure.op, "chdir");
  EXPECT_EQ(failure.result, -ENOENT);
  EXPECT_EQ(failure.error_number, ENOENT);
  expect_no_descendants();
  EXPECT(!stage.state_exists());
}

void fails_when_a_pid_is_taken() {
  Stage stage;
  TinyPlan plan = tiny_plan({});
  stage.add_undo(plan.request);
  plan.plan().tasks[plan.child].set_tid = {1};
  CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()});
  core.send(ToCoreKind::execute, encode(plan.request));
  const auto reply = core.receive();
  expect_kind(reply, FromCoreKind::failed);
  EXPECT_EQ(decode_failure(reply->body).result, -EEXIST);
  EXPECT_EQ(decode_failure(reply->body).op, "clone_process");
  expect_no_descendants();
}

void refuses_truncated_pages() {
  Stage stage;
  stage.images.write("pages-1.img", pages().substr(0, 8192 + 100));
  TinyPlan plan = tiny_plan({});
  stage.add_undo(plan.request);
  CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()});
  core.send(ToCoreKind::execute, encode(plan.request));
  const auto reply = core.receive();
  expect_kind(reply, FromCoreKind::failed);
  EXPECT_EQ(decode_failure(reply->body).reason, "truncated");
  expect_no_descendants();
  EXPECT(!stage.state_exists());
}

// In a user namespace, with ids mapped, and in cgroups of its own.
void restores_into_a_user_namespace_and_cgroups() {
  Stage stage;
  TinyPlan plan = tiny_plan({});
  plan.plan().tasks[plan.root].clone_flags |= CLONE_NEWUSER;
  plan.request.uid_map = plan.request.gid_map = {{0, 100000, 65536}};
  // PR_SET_MM_MAP with an exe wants capabilities in the user namespace, which the root has.
  std::vector<std::string> cgroups;
  for (const std::string parent : {"/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"}) {
    const std::string cgroup = parent + "/stasis-test-" + std::to_string(::getpid());
    if (::access((parent + "/cgroup.procs").c_str(), F_OK) < 0 || ::mkdir(cgroup.c_str(), 0755) < 0) continue;
    cgroups.push_back(cgroup);
    if (::access((cgroup + "/cgroup.events").c_str(), F_OK) == 0) {
      plan.request.cgroup2_directory = cgroup;
    } else {
      plan.request.cgroup_tasks_files.push_back(cgroup + "/tasks");
    }
    plan.request.undo.push_back({UndoAction::Kind::remove_cgroup, cgroup});
  }
  EXPECT(!cgroups.empty());
  CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()});
  core.send(ToCoreKind::execute, encode(plan.request));
  const auto parked = core.receive();
  expect_kind(parked, FromCoreKind::parked);
  const std::string proc = "/proc/" + std::to_string(root_pid_of(*parked));
  UniqueFd uid_map(::open((proc + "/uid_map").c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT(read_until_end(uid_map.borrow(), 4096).find("100000") != std::string::npos);
  for (const std::string& cgroup : cgroups) {
    UniqueFd procs(::open((cgroup + "/cgroup.procs").c_str(), O_RDONLY | O_CLOEXEC));
    const std::string members = read_until_end(procs.borrow(), 4096);
    EXPECT_EQ(std::count(members.begin(), members.end(), '\n'), 2);  // root and child
  }
  core.send(ToCoreKind::abort, "");
  expect_kind(core.receive(), FromCoreKind::rolled_back);
  expect_no_descendants();
  for (const std::string& cgroup : cgroups) EXPECT(::access(cgroup.c_str(), F_OK) < 0);
}

// Kills or fails the core before every step; nothing may be left.
void survive_faults(const char* variable, const TinyOptions& options) {
  const bool kills = std::strcmp(variable, "STASIS_FAULT_STEP") == 0;
  for (size_t number = 1; number <= kExecuteSteps.size(); ++number) {
    Stage stage;
    TinyPlan plan = tiny_plan(options);
    stage.add_undo(plan.request);
    CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()}, {{variable, std::to_string(number)}});
    stage.out_write.reset();
    core.send(ToCoreKind::execute, encode(plan.request));
    auto reply = core.receive();
    if (reply && reply->kind == FromCoreKind::parked) {
      core.send(ToCoreKind::release, "");
      reply = core.receive();
    }
    const std::string at = std::string(" at step ") + kExecuteSteps[number - 1];
    if (kills && reply) throw Failed("the core was not killed" + at);
    if (!kills && (!reply || reply->kind != FromCoreKind::failed || decode_failure(reply->body).reason != "fault")) {
      throw Failed("the core did not fail" + at);
    }
    try {
      expect_no_descendants();
    } catch (const Failed& failed) {
      throw Failed(failed.what() + at);
    }
    if (stage.state_exists()) throw Failed("the state directory is left" + at);
  }
}

void kill_in_a_namespace() { survive_faults("STASIS_FAULT_STEP", {.helper = true, .zombie = true}); }
void kill_without_namespaces() {
  survive_faults("STASIS_FAULT_STEP", {.pid_namespace = false, .helper = true, .zombie = true});
}
void fail_in_a_namespace() { survive_faults("STASIS_FAULT_FAIL", {.helper = true, .zombie = true}); }
void fail_without_namespaces() {
  survive_faults("STASIS_FAULT_FAIL", {.pid_namespace = false, .helper = true, .zombie = true});
}

// What the steps do not hit: any instant of a restore, the middle of a system call included.
void kill_at_random() {
  unsigned seed = static_cast<unsigned>(monotonic_now_ns());
  int released = 0;
  for (int round = 0; round < 100; ++round) {
    Stage stage;
    TinyPlan plan = tiny_plan({.pid_namespace = round % 2 == 0, .helper = true, .zombie = true});
    stage.add_undo(plan.request);
    CoreUnderTest core(stage.images_fd.borrow(), {stage.out_write.borrow()});
    stage.out_write.reset();
    const pid_t killer = ::fork();
    if (killer == 0) {
      const timespec delay{0, static_cast<long>(rand_r(&seed) % 4'000'000)};
      ::nanosleep(&delay, nullptr);
      ::kill(core.pid(), SIGKILL);
      ::_exit(0);
    }
    rand_r(&seed);
    core.send(ToCoreKind::execute, encode(plan.request));
    core.send(ToCoreKind::release, "");
    bool committed = false;
    while (const auto reply = core.receive()) committed = committed || reply->kind == FromCoreKind::released;
    released += committed;
    expect_no_descendants();
    // Killed after the commit and before it could say so, it has let the tree go as well.
    const std::string output = read_until_end(stage.out_read.borrow(), 20);
    if (committed || output.size() == 20) {
      EXPECT_EQ(sorted_lines(output), "chld done root thrd ");
    }
    EXPECT(stage.state_exists() || !committed);
  }
  std::printf("        %d of 100 were faster than the killer\n", released);
}

}  // namespace

int main(int argc, char** argv) {
  return run_cases(
      {
          {"restores a tree into a pid namespace", restores_into_a_pid_namespace},
          {"restores a tree without namespaces", restores_without_namespaces},
          {"restores a child whose parent has left", restores_with_a_helper},
          {"restores a child whose parent has left, without namespaces", restores_with_a_helper_without_namespaces},
          {"restores a zombie", restores_a_zombie},
          {"leaves a stopped process stopped", leaves_a_stopped_process_stopped},
          {"restarts interrupted system calls", restarts_an_interrupted_call},
          {"restores into a user namespace and cgroups", restores_into_a_user_namespace_and_cgroups},
          {"takes everything back on abort", aborts_when_parked},
          {"takes everything back when the other side dies", rolls_back_when_the_other_side_dies},
          {"fails when a parked task is killed", fails_when_a_parked_task_is_killed},
          {"names the step that fails", names_the_step_that_fails},
          {"fails when a pid is taken", fails_when_a_pid_is_taken},
          {"refuses truncated page files", refuses_truncated_pages},
          {"leaves nothing when killed at any step", kill_in_a_namespace},
          {"leaves nothing when killed at any step, without namespaces", kill_without_namespaces},
          {"leaves nothing when killed at random moments", kill_at_random},
          {"leaves nothing when failing at any step", fail_in_a_namespace},
          {"leaves nothing when failing at any step, without namespaces", fail_without_namespaces},
      },
      argc, argv);
}
