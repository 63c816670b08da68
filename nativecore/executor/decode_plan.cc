#include "executor/decode_plan.h"

#include <exception>
#include <protozero/pbf_reader.hpp>

#include "base/native_error.h"
#include "executor/syscall_table.h"

namespace stasis {
namespace {

using protozero::pbf_reader;

std::string_view view_of(pbf_reader& reader) {
  const protozero::data_view view = reader.get_view();
  return {view.data(), view.size()};
}

// Repeated numbers come packed from proto3 writers, one by one from others.
void append_int32s(pbf_reader& reader, std::vector<int32_t>& values) {
  if (reader.wire_type() == protozero::pbf_wire_type::length_delimited) {
    for (const int32_t value : reader.get_packed_int32()) values.push_back(value);
  } else {
    values.push_back(reader.get_int32());
  }
}

PlanArg decode_arg(pbf_reader reader) {
  PlanArg arg;
  while (reader.next()) {
    switch (reader.tag()) {
      case 1: arg = {PlanArg::Kind::immediate, reader.get_uint64(), 0}; break;
      case 2: arg = {PlanArg::Kind::blob, reader.get_uint32(), 0}; break;
      case 3: arg = {PlanArg::Kind::slot, reader.get_uint32(), 0}; break;
      case 4: {
        arg = {PlanArg::Kind::blob_offset, 0, 0};
        pbf_reader inner = reader.get_message();
        while (inner.next()) {
          switch (inner.tag()) {
            case 1: arg.value = inner.get_uint32(); break;
            case 2: arg.offset = inner.get_uint32(); break;
            default: inner.skip();
          }
        }
        break;
      }
      case 5: arg = {PlanArg::Kind::hole_offset, reader.get_uint64(), 0}; break;
      default: reader.skip();
    }
  }
  return arg;
}

void append_uint64s(pbf_reader& reader, std::vector<uint64_t>& values) {
  if (reader.wire_type() == protozero::pbf_wire_type::length_delimited) {
    for (const uint64_t value : reader.get_packed_uint64()) values.push_back(value);
  } else {
    values.push_back(reader.get_uint64());
  }
}

// `step` again and again, with the next numbers for arguments: from here on each is a step like any other.
void append_repeats(const PlanStep& step, const std::vector<uint64_t>& more_args, std::vector<PlanStep>& steps) {
  const auto refuse = [&step](const char* what) {
    throw NativeError("bad_plan", "repeating a step (" + std::string(step.op) + "): " + what);
  };
  const size_t width = step.args.size();
  if (width == 0 || width > kMaxArgs) refuse("it has no arguments, or more than six");
  if (more_args.size() % width != 0) refuse("the last repeat lacks arguments");
  if (step.out_slot != 0) refuse("it has a result to keep");
  if (find_syscall(step.op) == nullptr) refuse("it is not a system call that a plan may name");
  for (const PlanArg& arg : step.args)
    if (arg.kind != PlanArg::Kind::immediate) refuse("it has arguments that are not immediates");
  // One number is as little as a byte of the message, and a step a hundred times that.
  if (steps.size() + more_args.size() / width > kMaximalSteps) refuse("more than 4 million steps");
  steps.reserve(steps.size() + more_args.size() / width);
  for (size_t at = 0; at < more_args.size(); at += width) {
    PlanStep& repeat = steps.emplace_back(step);
    for (size_t i = 0; i < width; ++i) repeat.args[i].value = more_args[at + i];
  }
}

PlanStep decode_step(pbf_reader reader, std::vector<uint64_t>& more_args) {
  PlanStep step;
  while (reader.next()) {
    switch (reader.tag()) {
      case 1: step.op = view_of(reader); break;
      case 2: step.args.push_back(decode_arg(reader.get_message())); break;
      case 3: step.out_slot = reader.get_uint32(); break;
      case 4: step.has_expected = reader.get_bool(); break;
      case 5: step.expected = reader.get_uint64(); break;
      case 6: append_int32s(reader, step.tolerated_errnos); break;
      case 9: append_uint64s(reader, more_args); break;
      default: reader.skip();
    }
  }
  return step;
}

PlanPhase decode_phase(pbf_reader reader) {
  PlanPhase phase;
  while (reader.next()) {
    switch (reader.tag()) {
      case 1: phase.phase = static_cast<uint32_t>(reader.get_enum()); break;
      case 2: {
        std::vector<uint64_t> more_args;
        phase.steps.push_back(decode_step(reader.get_message(), more_args));
        if (!more_args.empty()) append_repeats(PlanStep(phase.steps.back()), more_args, phase.steps);
        break;
      }
      default: reader.skip();
    }
  }
  return phase;
}

PlanRelease decode_release(pbf_reader reader) {
  PlanRelease release;
  release.present = true;
  while (reader.next()) {
    switch (reader.tag()) {
      case 1: release.registers = view_of(reader); break;
      case 2: release.xstate = view_of(reader); break;
      case 3: release.signal_mask = reader.get_uint64(); break;
      default: reader.skip();
    }
  }
  return release;
}

PlanFill decode_fill(pbf_reader reader) {
  PlanFill fill;
  while (reader.next()) {
    switch (reader.tag()) {
      case 1: fill.method = static_cast<PlanFill::Method>(reader.get_enum()); break;
      case 2: fill.address = reader.get_uint64(); break;
      case 3: fill.page_count = reader.get_uint64(); break;
      case 4: fill.page_file = reader.get_uint32(); break;
      case 5: fill.file_offset_bytes = reader.get_uint64(); break;
      default: reader.skip();
    }
  }
  return fill;
}

PlanRange decode_range(pbf_reader reader) {
  PlanRange range;
  while (reader.next()) {
    switch (reader.tag()) {
      case 1: range.address = reader.get_uint64(); break;
      case 2: range.length_bytes = reader.get_uint64(); break;
      default: reader.skip();
    }
  }
  return range;
}

PlanTask decode_task(pbf_reader reader) {
  PlanTask task;
  while (reader.next()) {
    switch (reader.tag()) {
      case 1: task.kind = static_cast<TaskKind>(reader.get_enum()); break;
      case 2: task.parent = reader.get_uint32(); break;
      case 3: append_int32s(reader, task.set_tid); break;
      case 4: task.clone_flags = reader.get_uint64(); break;
      case 5: task.phases.push_back(decode_phase(reader.get_message())); break;
      case 6: task.release = decode_release(reader.get_message()); break;
      case 7: task.fills.push_back(decode_fill(reader.get_message())); break;
      case 8: task.uffd_ranges.push_back(decode_range(reader.get_message())); break;
      case 9: task.uffd_slot = reader.get_uint32(); break;
      case 12: task.stopped = reader.get_bool(); break;
      default: reader.skip();
    }
  }
  return task;
}

PlanBlob decode_blob(pbf_reader reader) {
  PlanBlob blob;
  while (reader.next()) {
    switch (reader.tag()) {
      case 1: blob.data = view_of(reader); break;
      case 2: {
        PlanRelocation relocation;
        pbf_reader inner = reader.get_message();
        while (inner.next()) {
          switch (inner.tag()) {
            case 1: relocation.offset = inner.get_uint32(); break;
            case 2:
              relocation.kind = PlanRelocation::Kind::blob;
              relocation.target = inner.get_uint32();
              break;
            case 3:
              relocation.kind = PlanRelocation::Kind::slot32;
              relocation.target = inner.get_uint32();
              break;
            case 4:
              relocation.kind = PlanRelocation::Kind::slot64;
              relocation.target = inner.get_uint32();
              break;
            default: inner.skip();
          }
        }
        blob.relocations.push_back(relocation);
        break;
      }
      case 3: blob.length_bytes = reader.get_uint64(); break;
      default: reader.skip();
    }
  }
  if (blob.length_bytes < blob.data.size()) blob.length_bytes = blob.data.size();
  return blob;
}

PlanExternal decode_external(pbf_reader reader) {
  PlanExternal external;
  while (reader.next()) {
    switch (reader.tag()) {
      case 1: external.name = view_of(reader); break;
      case 2: external.slot = reader.get_uint32(); break;
      case 3: external.descriptor = reader.get_int32(); break;
      default: reader.skip();
    }
  }
  return external;
}

PlanSocketCall decode_socket_call(pbf_reader reader) {
  PlanSocketCall call;
  while (reader.next()) {
    switch (reader.tag()) {
      case 1: call.kind = static_cast<PlanSocketCall::Kind>(reader.get_enum()); break;
      case 2: call.level = reader.get_int32(); break;
      case 3: call.name = reader.get_int32(); break;
      case 4: call.data = view_of(reader); break;
      default: reader.skip();
    }
  }
  return call;
}

PlanConnection decode_connection(pbf_reader reader) {
  PlanConnection connection;
  while (reader.next()) {
    switch (reader.tag()) {
      case 1: connection.task = reader.get_uint32(); break;
      case 2: connection.fd = reader.get_int32(); break;
      case 3: connection.local = view_of(reader); break;
      case 4: connection.peer = view_of(reader); break;
      case 5: connection.calls.push_back(decode_socket_call(reader.get_message())); break;
      case 6: connection.last_calls.push_back(decode_socket_call(reader.get_message())); break;
      case 7: connection.lock = reader.get_string(); break;
      default: reader.skip();
    }
  }
  return connection;
}

Plan decode_plan(pbf_reader reader) {
  Plan plan;
  while (reader.next()) {
    switch (reader.tag()) {
      case 1: plan.version = reader.get_uint32(); break;
      case 2: {
        const PlanRange hole = decode_range(reader.get_message());  // same form
        plan.hole_address = hole.address;
        plan.hole_length_bytes = hole.length_bytes;
        break;
      }
      case 3: plan.tasks.push_back(decode_task(reader.get_message())); break;
      case 4: plan.blobs.push_back(decode_blob(reader.get_message())); break;
      case 5: plan.slot_count = reader.get_uint32(); break;
      case 6: plan.externals.push_back(decode_external(reader.get_message())); break;
      case 7: plan.page_files.push_back(reader.get_string()); break;
      case 9: plan.connections.push_back(decode_connection(reader.get_message())); break;
      case 10: plan.network_descriptor = reader.get_int32(); break;
      default: reader.skip();
    }
  }
  return plan;
}

IdMapEntry decode_id_map(pbf_reader reader) {
  IdMapEntry entry;
  while (reader.next()) {
    switch (reader.tag()) {
      case 1: entry.inside = reader.get_uint32(); break;
      case 2: entry.outside = reader.get_uint32(); break;
      case 3: entry.count = reader.get_uint32(); break;
      default: reader.skip();
    }
  }
  return entry;
}

UndoAction decode_undo(pbf_reader reader) {
  UndoAction action;
  while (reader.next()) {
    switch (reader.tag()) {
      case 1: action.kind = static_cast<UndoAction::Kind>(reader.get_enum()); break;
      case 2: action.path = reader.get_string(); break;
      case 3: action.inode = reader.get_uint64(); break;
      default: reader.skip();
    }
  }
  return action;
}

}  // namespace

ExecuteRequest decode_execute_request(std::string_view message) {
  ExecuteRequest request;
  try {
    pbf_reader reader(message.data(), message.size());
    while (reader.next()) {
      switch (reader.tag()) {
        case 1: request.version = reader.get_uint32(); break;
        case 2: request.plan = decode_plan(reader.get_message()); break;
        case 3: request.deadline_ms = reader.get_uint32(); break;
        case 4: request.cgroup_tasks_files.push_back(reader.get_string()); break;
        case 5: request.cgroup2_directory = reader.get_string(); break;
        case 6: request.undo.push_back(decode_undo(reader.get_message())); break;
        case 7: request.uid_map.push_back(decode_id_map(reader.get_message())); break;
        case 8: request.gid_map.push_back(decode_id_map(reader.get_message())); break;
        case 9: append_int32s(reader, request.stop_before_step); break;
        case 11: request.start_fifo = reader.get_string(); break;
        case 20: request.lazy_pages = reader.get_bool(); break;
        case 21: request.page_file_digests.push_back(reader.get_string()); break;
        default: reader.skip();
      }
    }
  } catch (const protozero::exception& error) {
    throw NativeError("bad_request", std::string("decoding the plan: ") + error.what());
  }
  return request;
}

std::vector<UndoAction> decode_undo_actions(std::string_view message) noexcept {
  std::vector<UndoAction> actions;
  try {
    pbf_reader reader(message.data(), message.size());
    while (reader.next()) {
      if (reader.tag() == 6) {
        actions.push_back(decode_undo(reader.get_message()));
      } else {
        reader.skip();
      }
    }
  } catch (const std::exception&) {
    // What was read so far is what can be undone.
  }
  return actions;
}

}  // namespace stasis
