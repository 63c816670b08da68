// For the *_test.cc programs of this folder: writing plans by hand, and running
// the executor on them in a child process, as TypeScript would.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <map>
#include <optional>
#include <protozero/pbf_reader.hpp>
#include <protozero/pbf_writer.hpp>
#include <protozero/varint.hpp>
#include <string>
#include <vector>

#include "base/control_channel.h"
#include "base/deadline.h"
#include "base/testing.h"
#include "base/unique_fd.h"
#include "executor/execute_command.h"
#include "executor/plan_model.h"

namespace stasis::testing {

inline PlanArg imm(uint64_t value) { return {PlanArg::Kind::immediate, value, 0}; }
inline PlanArg slot(uint32_t number) { return {PlanArg::Kind::slot, number, 0}; }
inline PlanArg blob(uint32_t number) { return {PlanArg::Kind::blob, number, 0}; }
inline PlanArg blob_at(uint32_t number, uint32_t offset) { return {PlanArg::Kind::blob_offset, number, offset}; }
inline PlanArg hole_at(uint64_t offset) { return {PlanArg::Kind::hole_offset, offset, 0}; }

inline PlanStep step(std::string_view op, std::vector<PlanArg> args, uint32_t out_slot = 0) {
  PlanStep result;
  result.op = op;
  result.args = std::move(args);
  result.out_slot = out_slot;
  return result;
}
inline PlanStep expecting(PlanStep base, uint64_t expected) {
  base.has_expected = true;
  base.expected = expected;
  return base;
}
inline PlanStep tolerating(PlanStep base, std::vector<int32_t> errnos) {
  base.tolerated_errnos = std::move(errnos);
  return base;
}

// An ExecuteRequest with room for the bytes that its views point to.
struct TestRequest {
  ExecuteRequest request;
  std::deque<std::string> bytes;

  TestRequest() {
    request.version = 1;
    request.deadline_ms = 10'000;
    request.plan.version = 1;
    request.plan.hole_address = 0x200000000000;
    request.plan.hole_length_bytes = 1 << 20;
  }
  Plan& plan() { return request.plan; }
  std::string_view keep(std::string text) { return bytes.emplace_back(std::move(text)); }
  uint32_t add_blob(std::string data, std::vector<PlanRelocation> relocations = {}, uint64_t length_bytes = 0) {
    PlanBlob added;
    added.data = keep(std::move(data));
    added.relocations = std::move(relocations);
    added.length_bytes = length_bytes;
    plan().blobs.push_back(added);
    return static_cast<uint32_t>(plan().blobs.size() - 1);
  }
  template <typename Struct>
  uint32_t add_struct(const Struct& data, std::vector<PlanRelocation> relocations = {}) {
    return add_blob(std::string(reinterpret_cast<const char*>(&data), sizeof data), std::move(relocations));
  }
  uint32_t new_slot() { return ++plan().slot_count; }
  uint32_t add_external(int descriptor) {
    const uint32_t number = new_slot();
    plan().externals.push_back({"test", number, descriptor});
    return number;
  }
  uint32_t add_task(TaskKind kind, uint32_t parent) {
    PlanTask task;
    task.kind = kind;
    task.parent = parent;
    if (task.stays()) {
      task.release.present = true;
      user_regs_struct registers{};
      task.release.registers = keep(std::string(reinterpret_cast<const char*>(&registers), sizeof registers));
    }
    plan().tasks.push_back(task);
    return static_cast<uint32_t>(plan().tasks.size() - 1);
  }
  void add_step(uint32_t task, uint32_t phase, PlanStep added) {
    std::vector<PlanPhase>& phases = plan().tasks[task].phases;
    auto at = phases.begin();
    while (at != phases.end() && at->phase < phase) ++at;
    if (at == phases.end() || at->phase != phase) at = phases.insert(at, PlanPhase{phase, {}});
    at->steps.push_back(std::move(added));
  }
};

// `more_args`: repeats of the root's last step, which the decoded form has as steps of their own.
inline std::string encode(const ExecuteRequest& request, const std::vector<uint64_t>& more_args = {}) {
  using protozero::pbf_writer;
  std::string body;
  pbf_writer writer(body);
  writer.add_uint32(1, request.version);
  {
    pbf_writer plan(writer, 2);
    plan.add_uint32(1, request.plan.version);
    {
      pbf_writer hole(plan, 2);
      hole.add_uint64(1, request.plan.hole_address);
      hole.add_uint64(2, request.plan.hole_length_bytes);
    }
    for (const PlanTask& task : request.plan.tasks) {
      pbf_writer out(plan, 3);
      out.add_enum(1, static_cast<int32_t>(task.kind));
      out.add_uint32(2, task.parent);
      out.add_packed_int32(3, task.set_tid.begin(), task.set_tid.end());
      out.add_uint64(4, task.clone_flags);
      for (const PlanPhase& phase : task.phases) {
        pbf_writer steps(out, 5);
        steps.add_enum(1, static_cast<int32_t>(phase.phase));
        for (const PlanStep& planned : phase.steps) {
          pbf_writer inner(steps, 2);
          inner.add_string(1, planned.op.data(), planned.op.size());
          for (const PlanArg& arg : planned.args) {
            pbf_writer value(inner, 2);
            switch (arg.kind) {
              case PlanArg::Kind::immediate: value.add_uint64(1, arg.value); break;
              case PlanArg::Kind::blob: value.add_uint32(2, static_cast<uint32_t>(arg.value)); break;
              case PlanArg::Kind::slot: value.add_uint32(3, static_cast<uint32_t>(arg.value)); break;
              case PlanArg::Kind::blob_offset: {
                pbf_writer offset(value, 4);
                offset.add_uint32(1, static_cast<uint32_t>(arg.value));
                offset.add_uint32(2, arg.offset);
                break;
              }
              case PlanArg::Kind::hole_offset: value.add_uint64(5, arg.value); break;
            }
          }
          inner.add_uint32(3, planned.out_slot);
          inner.add_bool(4, planned.has_expected);
          inner.add_uint64(5, planned.expected);
          inner.add_packed_int32(6, planned.tolerated_errnos.begin(), planned.tolerated_errnos.end());
          const PlanTask& root = request.plan.tasks.front();
          if (&task == &root && &planned == &root.phases.back().steps.back())
            inner.add_packed_uint64(9, more_args.begin(), more_args.end());
        }
      }
      if (task.release.present) {
        pbf_writer release(out, 6);
        release.add_bytes(1, task.release.registers.data(), task.release.registers.size());
        release.add_bytes(2, task.release.xstate.data(), task.release.xstate.size());
        release.add_uint64(3, task.release.signal_mask);
      }
      for (const PlanFill& fill : task.fills) {
        pbf_writer inner(out, 7);
        inner.add_enum(1, static_cast<int32_t>(fill.method));
        inner.add_uint64(2, fill.address);
        inner.add_uint64(3, fill.page_count);
        inner.add_uint32(4, fill.page_file);
        inner.add_uint64(5, fill.file_offset_bytes);
      }
      for (const PlanRange& range : task.uffd_ranges) {
        pbf_writer inner(out, 8);
        inner.add_uint64(1, range.address);
        inner.add_uint64(2, range.length_bytes);
      }
      out.add_uint32(9, task.uffd_slot);
      out.add_bool(12, task.stopped);
    }
    for (const PlanBlob& planned : request.plan.blobs) {
      pbf_writer out(plan, 4);
      out.add_bytes(1, planned.data.data(), planned.data.size());
      for (const PlanRelocation& relocation : planned.relocations) {
        pbf_writer inner(out, 2);
        inner.add_uint32(1, relocation.offset);
        inner.add_uint32(static_cast<uint32_t>(relocation.kind) + 2, relocation.target);
      }
      out.add_uint64(3, planned.length_bytes);
    }
    plan.add_uint32(5, request.plan.slot_count);
    for (const PlanExternal& external : request.plan.externals) {
      pbf_writer out(plan, 6);
      out.add_string(1, external.name.data(), external.name.size());
      out.add_uint32(2, external.slot);
      out.add_int32(3, external.descriptor);
    }
    for (const std::string& name : request.plan.page_files) plan.add_string(7, name);
    for (const PlanConnection& connection : request.plan.connections) {
      pbf_writer out(plan, 9);
      out.add_uint32(1, connection.task);
      out.add_int32(2, connection.fd);
      out.add_bytes(3, connection.local.data(), connection.local.size());
      out.add_bytes(4, connection.peer.data(), connection.peer.size());
      for (const auto& [field, calls] : {std::pair{5u, &connection.calls}, std::pair{6u, &connection.last_calls}}) {
        for (const PlanSocketCall& call : *calls) {
          pbf_writer inner(out, field);
          inner.add_enum(1, static_cast<int32_t>(call.kind));
          inner.add_int32(2, call.level);
          inner.add_int32(3, call.name);
          inner.add_bytes(4, call.data.data(), call.data.size());
        }
      }
      out.add_string(7, connection.lock);
    }
    plan.add_int32(10, request.plan.network_descriptor);
  }
  writer.add_uint32(3, request.deadline_ms);
  for (const std::string& file : request.cgroup_tasks_files) writer.add_string(4, file);
  writer.add_string(5, request.cgroup2_directory);
  writer.add_string(11, request.start_fifo);
  writer.add_bool(20, request.lazy_pages);
  for (const UndoAction& action : request.undo) {
    pbf_writer out(writer, 6);
    out.add_enum(1, static_cast<int32_t>(action.kind));
    out.add_string(2, action.path);
    out.add_uint64(3, action.inode);
  }
  for (const auto& [field, map] : {std::pair{7u, &request.uid_map}, std::pair{8u, &request.gid_map}}) {
    for (const IdMapEntry& entry : *map) {
      pbf_writer out(writer, field);
      out.add_uint32(1, entry.inside);
      out.add_uint32(2, entry.outside);
      out.add_uint32(3, entry.count);
    }
  }
  return body;
}

struct Reply {
  FromCoreKind kind{};
  std::string body;
};

struct DecodedFailure {
  std::string reason, what, call;
  int32_t error_number = 0;
  uint32_t task = 0, phase = 0, step = 0;
  std::string op;
  int64_t result = 0;
};

inline DecodedFailure decode_failure(const std::string& body) {
  DecodedFailure failure;
  protozero::pbf_reader reader(body);
  while (reader.next()) {
    switch (reader.tag()) {
      case 1: failure.reason = reader.get_string(); break;
      case 2: failure.what = reader.get_string(); break;
      case 3: failure.call = reader.get_string(); break;
      case 4: failure.error_number = reader.get_int32(); break;
      case 9: {
        protozero::pbf_reader inner = reader.get_message();
        while (inner.next()) {
          switch (inner.tag()) {
            case 1: failure.task = inner.get_uint32(); break;
            case 2: failure.phase = inner.get_uint32(); break;
            case 3: failure.step = inner.get_uint32(); break;
            case 4: failure.op = inner.get_string(); break;
            case 5: failure.result = inner.get_int64(); break;
            default: inner.skip();
          }
        }
        break;
      }
      default: reader.skip();
    }
  }
  return failure;
}

// The executor in a child process, with its descriptors as stasis sets them up:
// 3 the control socket, 4 the images, then `externals` from 10 on.
class CoreUnderTest {
 public:
  CoreUnderTest(int images_directory, const std::vector<int>& externals,
                const std::map<std::string, std::string>& environment = {}) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) throw Failed("socketpair");
    pid_ = ::fork();
    if (pid_ == 0) {
      for (const auto& [name, value] : environment) ::setenv(name.c_str(), value.c_str(), 1);
      std::vector<int> high;  // out of the way first
      for (const int fd : externals) high.push_back(::fcntl(fd, F_DUPFD, 500));
      const int control = ::fcntl(ends[1], F_DUPFD, 500), images = ::fcntl(images_directory, F_DUPFD, 500);
      ::dup2(control, 3);
      ::dup2(images, 4);
      for (size_t i = 0; i < high.size(); ++i) ::dup2(high[i], static_cast<int>(10 + i));
      ::close_range(static_cast<unsigned>(10 + high.size()), ~0u, 0);
      ::close_range(5, 9, 0);
      // The real program, if one is named; else the same code in this one.
      if (const char* core = ::getenv("STASIS_CORE")) ::execl(core, core, "execute", nullptr);
      ::_exit(run_execute_command(false));
    }
    ::close(ends[1]);
    socket_ = UniqueFd(ends[0]);
  }

  pid_t pid() const { return pid_; }

  void send(ToCoreKind kind, const std::string& body) {
    std::string message, frame;
    {
      protozero::pbf_writer writer(message);
      writer.add_message(static_cast<uint32_t>(kind), body);
    }
    protozero::write_varint(std::back_inserter(frame), message.size());
    frame += message;
    size_t done = 0;
    while (done < frame.size()) {
      const ssize_t count = ::send(socket_.borrow(), frame.data() + done, frame.size() - done, MSG_NOSIGNAL);
      if (count <= 0) return;  // the core has been killed, as some tests want
      done += static_cast<size_t>(count);
    }
  }

  // nullopt: end of file.
  std::optional<Reply> receive() {
    for (;;) {
      const char* begin = received_.data();
      const char* at = begin;
      try {
        const uint64_t length = protozero::decode_varint(&at, begin + received_.size());
        if (received_.size() - static_cast<size_t>(at - begin) >= length) {
          const std::string frame(at, length);
          received_.erase(0, static_cast<size_t>(at - begin) + length);
          protozero::pbf_reader reader(frame);
          if (!reader.next()) throw Failed("an empty message");
          const auto kind = static_cast<FromCoreKind>(reader.tag());
          return Reply{kind, reader.get_string()};
        }
      } catch (const protozero::end_of_buffer_exception&) {
      }
      pollfd readable{socket_.borrow(), POLLIN, 0};
      if (::poll(&readable, 1, 20'000) <= 0) throw Failed("no message from the core in 20 s");
      char buffer[65536];
      const ssize_t count = ::read(socket_.borrow(), buffer, sizeof buffer);
      if (count <= 0) return std::nullopt;
      received_.append(buffer, static_cast<size_t>(count));
    }
  }

  void hang_up() { socket_.reset(); }

 private:
  pid_t pid_ = -1;
  UniqueFd socket_;
  std::string received_;
};

// Everything that a restore has left becomes a child of this process, a
// subreaper. Returns when none is there any more; a test that fails here leaks.
inline void expect_no_descendants(int timeout_ms = 10'000) {
  const Deadline deadline = Deadline::in_ms(static_cast<uint64_t>(timeout_ms));
  for (;;) {
    int status;
    const pid_t pid = ::waitpid(-1, &status, WNOHANG | __WALL);
    if (pid < 0 && errno == ECHILD) return;
    if (pid == 0) {
      if (deadline.expired()) throw Failed("a process is left");
      ::poll(nullptr, 0, 1);
    }
  }
}

inline std::string read_until_end(int fd, size_t length, int timeout_ms = 5'000) {
  std::string text;
  while (text.size() < length) {
    pollfd readable{fd, POLLIN, 0};
    if (::poll(&readable, 1, timeout_ms) <= 0) break;
    char buffer[4096];
    const ssize_t count = ::read(fd, buffer, sizeof buffer);
    if (count <= 0) break;
    text.append(buffer, static_cast<size_t>(count));
  }
  return text;
}

// A directory of its own, removed with what is directly in it.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    char name[] = "/tmp/stasis-test-XXXXXX";
    if (!::mkdtemp(name)) throw Failed("mkdtemp");
    path_ = name;
  }
  ~TemporaryDirectory() { (void)!::system(("rm -rf " + path_).c_str()); }
  const std::string& path() const { return path_; }
  UniqueFd open() const { return UniqueFd(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)); }
  void write(const std::string& name, const std::string& content) const {
    UniqueFd file(::open((path_ + "/" + name).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (::write(file.borrow(), content.data(), content.size()) != static_cast<ssize_t>(content.size()))
      throw Failed("write");
  }

 private:
  std::string path_;
};

inline void become_subreaper() { ::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); }

}  // namespace stasis::testing
