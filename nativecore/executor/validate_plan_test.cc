// What the executor refuses before it touches anything, and that a request is
// decoded as it was encoded.
#include <linux/sched.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "base/native_error.h"
#include "executor/decode_plan.h"
#include "executor/syscall_table.h"
#include "executor/testing_plan.h"
#include "executor/validate_plan.h"

using namespace stasis;
using namespace stasis::testing;

namespace {

struct Refusable : TestRequest {
  uint32_t root = add_task(TaskKind::process, 0);
};

void expect_refused(TestRequest& request, const char* words, const std::vector<uint64_t>& more_args = {}) {
  const std::string message = encode(request.request, more_args);
  try {
    validate_request(decode_execute_request(message));
  } catch (const NativeError& error) {
    if (std::string(error.what()).find(words) == std::string::npos)
      throw Failed(std::string("refused otherwise: ") + error.what());
    return;
  }
  throw Failed(std::string("not refused: ") + words);
}

void expect_accepted(TestRequest& request) { validate_request(decode_execute_request(encode(request.request))); }

void accepts_a_small_plan() {
  Refusable request;
  expect_accepted(request);
}

void refuses_versions() {
  Refusable request;
  request.plan().version = 2;
  expect_refused(request, "plan version 2");
}

void refuses_unknown_calls() {
  for (const char* op : {"execve", "reboot", "kill", "ptrace", "fork", "clone3", ""}) {
    Refusable request;
    request.add_step(request.root, kPhaseFiles, step(op, {}));
    expect_refused(request, "not a system call that a plan may name");
  }
  Refusable request;
  request.add_step(request.root, kPhaseFiles, step("openat", {imm(0)}));
  expect_refused(request, "it has 1 arguments");
  EXPECT_EQ(find_syscall("openat2")->number, 437);
}

constexpr uint64_t kAnywhere = 0x400000;

PlanStep protect(uint64_t address) { return step("mprotect", {imm(address), imm(4096), imm(1)}); }

void takes_repeats_for_steps() {
  Refusable spelt_out, repeated;
  PlanStep tolerant = protect(kAnywhere);
  tolerant.tolerated_errnos = {12};
  repeated.add_step(repeated.root, kPhaseMemory, tolerant);
  for (uint64_t i = 0; i < 3; ++i) {
    tolerant.args[0].value = kAnywhere + i * 8192;
    spelt_out.add_step(spelt_out.root, kPhaseMemory, tolerant);
  }
  const std::string message = encode(repeated.request, {kAnywhere + 8192, 4096, 1, kAnywhere + 16384, 4096, 1});
  const ExecuteRequest decoded = decode_execute_request(message);
  validate_request(decoded);
  EXPECT_EQ(encode(decoded), encode(spelt_out.request));
}

void refuses_repeats_of_what_is_no_plain_step() {
  Refusable request;
  request.add_step(request.root, kPhaseMemory, protect(kAnywhere));
  expect_refused(request, "the last repeat lacks arguments", {kAnywhere, 4096});
  // Where a step by itself would be refused, so is one among repeats.
  expect_refused(request, "it would change the hole", {kAnywhere, 4096, 1, request.plan().hole_address, 4096, 1});
  Refusable slotted;
  const uint32_t number = slotted.new_slot();
  slotted.add_step(slotted.root, kPhaseFiles, step("epoll_create1", {imm(0)}, number));
  expect_refused(slotted, "it has a result to keep", {0});
  slotted.add_step(slotted.root, kPhaseFiles, step("close", {slot(number)}));
  expect_refused(slotted, "arguments that are not immediates", {3});
  Refusable empty;
  empty.add_step(empty.root, kPhaseFiles, step("getpid", {}));
  expect_refused(empty, "it has no arguments", {1});
  Refusable wide;
  wide.add_step(wide.root, kPhaseFiles, step("mmap", std::vector<PlanArg>(7, imm(0))));
  expect_refused(wide, "or more than six", std::vector<uint64_t>(7));
  for (const char* op : {"clone_process", "clone_thread", "exit_now", "load", "await_fill", "reboot"}) {
    Refusable built_in;
    built_in.add_step(built_in.root, kPhaseTasks, step(op, {imm(0)}));
    expect_refused(built_in, "not a system call that a plan may name", {0});
  }
}

void bounds_repeats() {
  Refusable request;
  request.add_step(request.root, kPhaseFiles, step("close", {imm(0)}));
  expect_refused(request, "more than 4 million steps", std::vector<uint64_t>(kMaximalSteps));
}

void refuses_slots_used_too_early() {
  Refusable early;
  const uint32_t number = early.new_slot();
  early.add_step(early.root, kPhaseFiles, step("close", {slot(number)}));
  early.add_step(early.root, kPhaseFiles, step("eventfd2", {imm(0), imm(0)}, number));
  expect_refused(early, "slot 1 is used before it is defined");

  Refusable sibling;  // two tasks of one phase: nothing orders them
  const uint32_t shared = sibling.new_slot();
  const uint32_t first = sibling.add_task(TaskKind::process, 0), second = sibling.add_task(TaskKind::process, 0);
  sibling.add_step(sibling.root, kPhaseTasks, step("clone_process", {imm(first)}));
  sibling.add_step(sibling.root, kPhaseTasks, step("clone_process", {imm(second)}));
  sibling.add_step(first, kPhaseTasks, step("setsid", {}, shared));
  sibling.add_step(second, kPhaseTasks, step("setpgid", {imm(0), slot(shared)}));
  expect_refused(sibling, "slot 1 is used before it is defined");

  Refusable inherited;  // what the parent did before it created the child
  const uint32_t descriptor = inherited.new_slot();
  const uint32_t child = inherited.add_task(TaskKind::process, 0);
  inherited.add_step(inherited.root, kPhaseTasks, step("eventfd2", {imm(0), imm(0)}, descriptor));
  inherited.add_step(inherited.root, kPhaseTasks, step("clone_process", {imm(child)}));
  inherited.add_step(child, kPhaseTasks, step("close", {slot(descriptor)}));
  expect_accepted(inherited);

  Refusable in_blob;
  const uint32_t late = in_blob.new_slot();
  const uint32_t inner = in_blob.add_blob(std::string(8, '\0'), {{0, PlanRelocation::Kind::slot64, late}});
  const uint32_t outer = in_blob.add_blob(std::string(8, '\0'), {{0, PlanRelocation::Kind::blob, inner}});
  in_blob.add_step(in_blob.root, kPhaseFiles, step("write", {imm(1), blob(outer), imm(8)}));
  expect_refused(in_blob, "slot 1 is used before it is defined");
}

void refuses_bad_bounds() {
  Refusable outside;
  outside.add_blob(std::string(8, '\0'), {{4, PlanRelocation::Kind::slot64, outside.new_slot()}});
  expect_refused(outside, "a relocation lies outside its blob");
  Refusable huge;
  huge.add_blob("", {}, 1ull << 40);
  expect_refused(huge, "the blobs are larger than the hole");
  Refusable unaligned;
  unaligned.plan().hole_address += 8;
  expect_refused(unaligned, "the hole is not");
  Refusable high;
  high.plan().hole_address = 0x7ffffffff000;
  expect_refused(high, "the hole is not");
  Refusable unmapping;
  unmapping.add_step(unmapping.root, kPhaseMemory, step("munmap", {imm(0), imm(0x7ffffffff000)}));
  expect_refused(unmapping, "it would change the hole");
  Refusable mapping;
  mapping.add_step(mapping.root, kPhaseMemory,
                   step("mmap", {imm(mapping.plan().hole_address + 4096), imm(4096), imm(0),
                                 imm(MAP_FIXED | MAP_PRIVATE), imm(0), imm(0)}));
  expect_refused(mapping, "it would change the hole");
  Refusable loading;
  const uint32_t small = loading.add_blob("12345678");
  loading.add_step(loading.root, kPhaseFiles, step("load", {blob(small), imm(5), imm(4)}, loading.new_slot()));
  expect_refused(loading, "it reads outside its blob");
  Refusable escaping;
  escaping.plan().page_files = {"../pages-1.img"};
  expect_refused(escaping, "plain file name");
  for (const char* name : {"parent/", "parent/..", "parent/parent/../pages-1.img", "parents/pages-1.img"}) {
    Refusable elsewhere;
    elsewhere.plan().page_files = {name};
    expect_refused(elsewhere, "plain file name");
  }
  Refusable filling;
  filling.plan().page_files = {"pages-1.img"};
  filling.plan().tasks[0].fills = {{PlanFill::Method::uffd, 0x400000, 1, 0, 0}};
  expect_refused(filling, "a fill lies outside the userfaultfd ranges");
}

void refuses_impossible_connections() {
  std::string four(16, '\0');
  four[0] = AF_INET;
  const auto spoiled = [&](const char* reason, auto spoil) {
    Refusable plan;
    PlanConnection connection;
    connection.fd = 3;
    connection.local = connection.peer = four;
    plan.plan().connections = {connection};
    expect_accepted(plan);
    spoil(plan.plan().connections[0]);
    expect_refused(plan, reason);
  };
  spoiled("no process", [](PlanConnection& one) { one.task = 7; });
  spoiled("no descriptor", [](PlanConnection& one) { one.fd = -1; });
  spoiled("no addresses", [](PlanConnection& one) { one.peer = "short"; });
  spoiled("whose name is none", [](PlanConnection& one) { one.lock = "filter"; });
  spoiled("no socket takes", [](PlanConnection& one) {
    one.calls.push_back({static_cast<PlanSocketCall::Kind>(7), 0, 0, {}});
  });
  spoiled("no socket takes", [](PlanConnection& one) {
    one.last_calls.push_back({PlanSocketCall::Kind::shutdown, 3, 0, {}});
  });
  Refusable network;
  network.plan().network_descriptor = 3;
  expect_refused(network, "the core's own");
}

void refuses_impossible_trees() {
  Refusable orphan;
  orphan.add_task(TaskKind::process, 0);
  expect_refused(orphan, "is created by nobody");
  Refusable twice;
  const uint32_t child = twice.add_task(TaskKind::process, 0);
  twice.add_step(twice.root, kPhaseTasks, step("clone_process", {imm(child)}));
  twice.add_step(twice.root, kPhaseTasks, step("clone_process", {imm(child)}));
  expect_refused(twice, "is created twice");
  Refusable immortal;
  const uint32_t zombie = immortal.add_task(TaskKind::zombie, 0);
  immortal.add_step(immortal.root, kPhaseTasks, step("clone_process", {imm(zombie)}));
  expect_refused(immortal, "zombie that never exits");
  Refusable backwards;
  backwards.plan().tasks[0].phases = {{kPhaseMemory, {}}, {kPhaseFiles, {}}};
  expect_refused(backwards, "out of order");
  Refusable early;
  const uint32_t other = early.add_task(TaskKind::process, 0);
  early.add_step(early.root, kPhaseTasks, step("clone_process", {imm(other)}));
  early.add_step(other, kPhaseFiles, step("getpid", {}));
  expect_refused(early, "cannot have steps in phase FILES");
  Refusable flags;
  flags.plan().tasks[0].clone_flags = CLONE_VM;
  expect_refused(flags, "clone flags that are not namespaces");
  Refusable registers;
  registers.plan().tasks[0].release.registers = "short";
  expect_refused(registers, "no complete register set");
}

void refuses_waiting_for_nothing() {
  Refusable filled;
  filled.add_step(filled.root, kPhaseFill, step("munmap", {imm(0x400000), imm(4096)}));
  expect_refused(filled, "while memory is filled tasks wait for it and protect it");
  Refusable unfilled;
  unfilled.add_step(unfilled.root, kPhaseFill, step("await_fill", {imm(1)}));
  expect_refused(unfilled, "it takes a number of userfaultfd ranges of its task");
  Refusable early;
  early.add_step(early.root, kPhaseMemory, step("await_fill", {imm(0)}));
  expect_refused(early, "memory is filled in phase FILL");
  Refusable later;
  later.request.lazy_pages = true;
  later.add_step(later.root, kPhaseFill, step("await_fill", {imm(0)}));
  expect_refused(later, "what is restored lazily is not filled then");
  Refusable overlapping;
  const uint32_t uffd_slot = overlapping.new_slot();
  overlapping.add_step(overlapping.root, kPhaseMemory, step("userfaultfd", {imm(0)}, uffd_slot));
  overlapping.plan().tasks[0].uffd_slot = uffd_slot;
  overlapping.plan().tasks[0].uffd_ranges = {{0x402000, 0x1000}, {0x400000, 0x3000}};
  expect_refused(overlapping, "userfaultfd ranges of a task overlap");
}

void refuses_noise() {
  for (const std::string& noise :
       {std::string("\xff\xff\xff\xff\xff"), std::string("\x12\x7f"), std::string("\x12\x02\x1a\x7f")}) {
    try {
      decode_execute_request(noise);
    } catch (const NativeError& error) {
      EXPECT_EQ(error.reason, "bad_request");
      continue;
    }
    throw Failed("noise was decoded");
  }
  // Every prefix of a real request either decodes or is refused, and nothing else happens.
  Refusable request;
  request.add_step(request.root, kPhaseFiles, tolerating(step("close", {imm(3)}), {EBADF}));
  request.request.undo = {{UndoAction::Kind::remove_file, "/nonexistent"}};
  const std::string whole = encode(request.request);
  for (size_t length = 0; length < whole.size(); ++length) {
    try {
      const std::string prefix = whole.substr(0, length);
      validate_request(decode_execute_request(prefix));
    } catch (const NativeError&) {
    }
  }
  EXPECT_EQ(decode_undo_actions(whole).size(), 1u);
}

}  // namespace

int main(int argc, char** argv) {
  return run_cases(
      {
          {"accepts a small plan", accepts_a_small_plan},
          {"refuses other versions", refuses_versions},
          {"refuses calls that are not on the list", refuses_unknown_calls},
          {"takes repeats for steps of their own", takes_repeats_for_steps},
          {"refuses repeats of what is no plain step", refuses_repeats_of_what_is_no_plain_step},
          {"bounds repeats", bounds_repeats},
          {"refuses slots that are used too early", refuses_slots_used_too_early},
          {"refuses what is out of bounds", refuses_bad_bounds},
          {"refuses impossible connections", refuses_impossible_connections},
          {"refuses impossible trees", refuses_impossible_trees},
          {"refuses waiting for nothing", refuses_waiting_for_nothing},
          {"refuses noise", refuses_noise},
      },
      argc, argv);
}
