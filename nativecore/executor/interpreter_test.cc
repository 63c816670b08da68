// The interpreter's operations, one by one: each case runs a few steps in a
// root task that only writes to a pipe, and takes it back when it is parked.
#include <linux/sched.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <stddef.h>

#include "executor/testing_plan.h"

using namespace stasis;
using namespace stasis::testing;

namespace {

struct Bench : TestRequest {
  uint32_t output, root;
  UniqueFd read_end, write_end;
  TemporaryDirectory images;
  UniqueFd images_fd = images.open();

  Bench() {
    become_subreaper();
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) < 0) throw Failed("pipe2");
    read_end = UniqueFd(ends[0]);
    write_end = UniqueFd(ends[1]);
    output = add_external(10);
    root = add_task(TaskKind::process, 0);
  }

  void run(uint32_t phase, PlanStep added) { add_step(root, phase, std::move(added)); }
  // Writes 8 bytes: what the address holds.
  void show(uint32_t phase, PlanArg address) {
    run(phase, expecting(step("write", {slot(output), address, imm(8)}), 8));
  }

  Reply execute(std::map<std::string, std::string> environment = {}) {
    CoreUnderTest core(images_fd.borrow(), {write_end.borrow()}, environment);
    write_end.reset();
    core.send(ToCoreKind::execute, encode(request));
    const auto reply = core.receive();
    if (!reply) throw Failed("the core hung up");
    if (reply->kind == FromCoreKind::parked) {
      core.send(ToCoreKind::abort, "");
      const auto rolled_back = core.receive();
      EXPECT(rolled_back && rolled_back->kind == FromCoreKind::rolled_back);
    }
    expect_no_descendants();
    return *reply;
  }

  std::string execute_and_read() {
    const Reply reply = execute();
    if (reply.kind == FromCoreKind::failed) {
      const DecodedFailure failure = decode_failure(reply.body);
      throw Failed(failure.reason + " " + failure.what + " " + failure.op + " " + std::to_string(failure.result));
    }
    EXPECT_EQ(static_cast<int>(reply.kind), static_cast<int>(FromCoreKind::parked));
    return read_until_end(read_end.borrow(), SIZE_MAX);
  }

  DecodedFailure execute_and_fail() {
    const Reply reply = execute();
    EXPECT_EQ(static_cast<int>(reply.kind), static_cast<int>(FromCoreKind::failed));
    return decode_failure(reply.body);
  }
};

std::string bytes_of(uint64_t value) { return std::string(reinterpret_cast<const char*>(&value), 8); }

void passes_blobs() {
  Bench bench;
  const uint32_t text = bench.add_blob("interpreter");
  bench.run(kPhaseFiles, expecting(step("write", {slot(bench.output), blob(text), imm(5)}), 5));
  bench.run(kPhaseFiles, expecting(step("write", {slot(bench.output), blob_at(text, 5), imm(6)}), 6));
  EXPECT_EQ(bench.execute_and_read(), "interpreter");
}

void loads_results_from_memory() {
  Bench bench;
  const uint32_t ends = bench.add_blob("", {}, 8), text = bench.add_blob("through"), room = bench.add_blob("", {}, 7);
  const uint32_t reader = bench.new_slot(), writer = bench.new_slot();
  bench.run(kPhaseFiles, step("pipe2", {blob(ends), imm(0)}));
  bench.run(kPhaseFiles, step("load", {blob(ends), imm(0), imm(4)}, reader));
  bench.run(kPhaseFiles, step("load", {blob(ends), imm(4), imm(4)}, writer));
  bench.run(kPhaseFiles, expecting(step("write", {slot(writer), blob(text), imm(7)}), 7));
  bench.run(kPhaseFiles, expecting(step("read", {slot(reader), blob(room), imm(7)}), 7));
  bench.run(kPhaseFiles, expecting(step("write", {slot(bench.output), blob(room), imm(7)}), 7));
  EXPECT_EQ(bench.execute_and_read(), "through");
}

// sendmsg -> msghdr -> control message -> descriptor in a slot: two blobs away from the step.
void relocates_through_blobs() {
  Bench bench;
  const uint32_t event = bench.new_slot(), ends = bench.add_blob("", {}, 8), first = bench.new_slot(),
                 second = bench.new_slot();
  bench.run(kPhaseFiles, step("eventfd2", {imm(42), imm(0)}, event));
  bench.run(kPhaseFiles, step("socketpair", {imm(AF_UNIX), imm(SOCK_STREAM), imm(0), blob(ends)}));
  bench.run(kPhaseFiles, step("load", {blob(ends), imm(0), imm(4)}, first));
  bench.run(kPhaseFiles, step("load", {blob(ends), imm(4), imm(4)}, second));
  const uint32_t data = bench.add_blob("x");
  const iovec vector{nullptr, 1};
  const uint32_t vector_blob = bench.add_struct(vector, {{0, PlanRelocation::Kind::blob, data}});
  cmsghdr control{};
  control.cmsg_len = CMSG_LEN(4);
  control.cmsg_level = SOL_SOCKET;
  control.cmsg_type = SCM_RIGHTS;
  const std::string control_bytes =
      std::string(reinterpret_cast<const char*>(&control), sizeof control) + std::string(8, '\0');
  const uint32_t sent = bench.add_blob(control_bytes, {{sizeof control, PlanRelocation::Kind::slot32, event}});
  const uint32_t received = bench.add_blob("", {}, 24), room = bench.add_blob("", {}, 8);
  msghdr message{};
  message.msg_iovlen = 1;
  message.msg_controllen = CMSG_SPACE(4);
  const auto header = [&](uint32_t control_blob) {
    return bench.add_struct(message, {{offsetof(msghdr, msg_iov), PlanRelocation::Kind::blob, vector_blob},
                                      {offsetof(msghdr, msg_control), PlanRelocation::Kind::blob, control_blob}});
  };
  const uint32_t other = bench.new_slot();
  bench.run(kPhaseFiles, expecting(step("sendmsg", {slot(first), blob(header(sent)), imm(0)}), 1));
  bench.run(kPhaseFiles, expecting(step("recvmsg", {slot(second), blob(header(received)), imm(0)}), 1));
  bench.run(kPhaseFiles, step("load", {blob(received), imm(16), imm(4)}, other));
  bench.run(kPhaseFiles, expecting(step("read", {slot(other), blob(room), imm(8)}), 8));
  bench.show(kPhaseFiles, blob(room));
  EXPECT_EQ(bench.execute_and_read(), bytes_of(42));
}

void writes_slot_values_into_blobs() {
  Bench bench;
  const uint32_t pid = bench.new_slot();
  bench.run(kPhaseFiles, step("getpid", {}, pid));
  const uint32_t wide = bench.add_blob(
      std::string(16, '\xff'), {{0, PlanRelocation::Kind::slot64, pid}, {8, PlanRelocation::Kind::slot32, pid}});
  bench.run(kPhaseFiles, expecting(step("write", {slot(bench.output), blob(wide), imm(16)}), 16));
  bench.request.plan.tasks[0].clone_flags = CLONE_NEWPID;
  bench.request.plan.tasks[0].set_tid = {1};
  EXPECT_EQ(bench.execute_and_read(), bytes_of(1) + std::string("\1\0\0\0\xff\xff\xff\xff", 8));
}

void goes_on_after_a_tolerated_error() {
  Bench bench;
  const uint32_t text = bench.add_blob("on");
  bench.run(kPhaseFiles, tolerating(step("close", {imm(4000)}), {EINTR, EBADF}));
  bench.run(kPhaseFiles, expecting(step("close", {imm(4000)}), static_cast<uint64_t>(-EBADF)));
  bench.run(kPhaseFiles, step("write", {slot(bench.output), blob(text), imm(2)}));
  EXPECT_EQ(bench.execute_and_read(), "on");
}

void fails_on_another_result() {
  Bench bench;
  bench.run(kPhaseFiles, expecting(step("getppid", {}), 123456));
  const DecodedFailure failure = bench.execute_and_fail();
  EXPECT_EQ(failure.reason, "unexpected_result");
  EXPECT_EQ(failure.op, "getppid");
  EXPECT_EQ(failure.phase, kPhaseFiles);
}

void fails_on_an_error_that_is_not_tolerated() {
  Bench bench;
  bench.run(kPhaseNamespaces, step("getpid", {}));
  bench.run(kPhaseFiles, tolerating(step("close", {imm(4000)}), {EINTR}));
  const DecodedFailure failure = bench.execute_and_fail();
  EXPECT_EQ(failure.result, -EBADF);
  EXPECT_EQ(failure.step, 0u);
}

// The task inherits nothing of the core but the externals.
void starts_with_externals_only() {
  Bench bench;
  for (int fd = 0; fd < 10; ++fd)
    bench.run(kPhaseFiles, expecting(step("close", {imm(static_cast<uint64_t>(fd))}), static_cast<uint64_t>(-EBADF)));
  for (int fd = 11; fd < 40; ++fd)
    bench.run(kPhaseFiles, expecting(step("close", {imm(static_cast<uint64_t>(fd))}), static_cast<uint64_t>(-EBADF)));
  bench.execute_and_read();
}

void gives_children_the_pids_of_the_plan() {
  Bench bench;
  Plan& plan = bench.plan();
  plan.tasks[0].clone_flags = CLONE_NEWPID;
  plan.tasks[0].set_tid = {1};
  const uint32_t child = bench.add_task(TaskKind::process, 0), grandchild = bench.add_task(TaskKind::process, child);
  plan.tasks[child].set_tid = {4711};
  plan.tasks[grandchild].set_tid = {17};
  bench.run(kPhaseTasks, step("clone_process", {imm(child)}));
  bench.add_step(child, kPhaseTasks, step("clone_process", {imm(grandchild)}));
  bench.add_step(grandchild, kPhaseGroups, expecting(step("getpid", {}), 17));
  bench.add_step(grandchild, kPhaseGroups, expecting(step("getppid", {}), 4711));
  bench.execute_and_read();
}

void gives_up_at_the_deadline() {
  Bench bench;
  bench.request.deadline_ms = 50;
  const uint32_t event = bench.new_slot(), room = bench.add_blob("", {}, 8);
  bench.run(kPhaseFiles, step("eventfd2", {imm(0), imm(0)}, event));
  bench.run(kPhaseFiles, step("read", {slot(event), blob(room), imm(8)}));
  EXPECT_EQ(bench.execute_and_fail().reason, "deadline");
}

void notices_an_abort_while_a_step_blocks() {
  Bench bench;
  const uint32_t event = bench.new_slot(), room = bench.add_blob("", {}, 8);
  bench.run(kPhaseFiles, step("eventfd2", {imm(0), imm(0)}, event));
  bench.run(kPhaseFiles, step("read", {slot(event), blob(room), imm(8)}));
  CoreUnderTest core(bench.images_fd.borrow(), {bench.write_end.borrow()});
  core.send(ToCoreKind::execute, encode(bench.request));
  core.send(ToCoreKind::abort, "");
  const auto reply = core.receive();
  EXPECT(reply && reply->kind == FromCoreKind::rolled_back);
  expect_no_descendants();
}

// A step that kills its task: with nothing mapped but the hole, reading outside it.
void reports_a_task_that_dies() {
  Bench bench;
  const uint64_t mask = 0;
  const uint32_t unblocked = bench.add_struct(mask);
  const timespec soon{0, 1};
  itimerspec expiry{};
  expiry.it_value = soon;
  const uint32_t timer = bench.add_blob("", {}, 8), expiry_blob = bench.add_struct(expiry), id = bench.new_slot();
  const uint32_t event = bench.new_slot(), room = bench.add_blob("", {}, 8);
  bench.run(kPhaseFiles, step("rt_sigprocmask", {imm(SIG_SETMASK), blob(unblocked), imm(0), imm(8)}));
  bench.run(kPhaseFiles, step("timer_create", {imm(CLOCK_MONOTONIC), imm(0), blob(timer)}));
  bench.run(kPhaseFiles, step("load", {blob(timer), imm(0), imm(4)}, id));
  bench.run(kPhaseFiles, step("timer_settime", {slot(id), imm(0), blob(expiry_blob), imm(0)}));
  bench.run(kPhaseFiles, step("eventfd2", {imm(0), imm(0)}, event));
  bench.run(kPhaseFiles, step("read", {slot(event), blob(room), imm(8)}));
  const DecodedFailure failure = bench.execute_and_fail();
  EXPECT_EQ(failure.reason, "task_gone");
  EXPECT_EQ(failure.phase, kPhaseFiles);
}

}  // namespace

int main(int argc, char** argv) {
  return run_cases(
      {
          {"passes blobs and places in them", passes_blobs},
          {"loads results from memory", loads_results_from_memory},
          {"relocates slots in blobs that a blob points to", relocates_through_blobs},
          {"writes slot values into blobs", writes_slot_values_into_blobs},
          {"goes on after a tolerated error", goes_on_after_a_tolerated_error},
          {"fails on another result than expected", fails_on_another_result},
          {"fails on an error that is not tolerated", fails_on_an_error_that_is_not_tolerated},
          {"starts with externals only", starts_with_externals_only},
          {"gives children the pids of the plan", gives_children_the_pids_of_the_plan},
          {"gives up at the deadline", gives_up_at_the_deadline},
          {"notices an abort while a step blocks", notices_an_abort_while_a_step_blocks},
          {"reports a task that dies", reports_a_task_that_dies},
      },
      argc, argv);
}
