#include "executor/execute_command.h"

#include <exception>
#include <memory>
#include <optional>
#include <string>

#include "base/control_channel.h"
#include "base/failure_message.h"
#include "base/log_ring.h"
#include "base/native_error.h"
#include "base/timing.h"
#include "executor/decode_plan.h"
#include "executor/execute_plan.h"
#include "executor/execute_steps.h"
#include "executor/janitor.h"
#include "executor/undo.h"

namespace stasis {
namespace {

// The request, or an error after its preparations have been taken back.
ExecuteRequest read_request(const ToCoreMessage& message) {
  if (message.kind != ToCoreKind::execute)
    throw NativeError("bad_request", "the first message is not a request to execute");
  try {
    return decode_execute_request(message.body);
  } catch (NativeError& error) {
    for (NativeError& failure : perform_undo(decode_undo_actions(message.body))) error.suppress(std::move(failure));
    throw;
  }
}

// What TypeScript is about to make is known here before it is made: if it is
// killed between two of its steps, we take back; if we are, the keeper does.
// Returns the request; nullopt if the other side has gone or thought better of it.
std::optional<ToCoreMessage> receive_request(ControlChannel& channel, std::unique_ptr<Janitor>& keeper) {
  std::optional<ToCoreMessage> message = channel.receive();
  if (!message || message->kind != ToCoreKind::prepare) return message;
  std::vector<UndoAction> undo;
  for (; message && message->kind == ToCoreKind::prepare; message = channel.receive()) {
    undo = decode_undo_actions(message->body);
    auto successor = std::make_unique<Janitor>(undo);  // before its predecessor goes: what exists is never unwatched
    if (keeper) keeper->dismiss();
    keeper = std::move(successor);
    channel.send(FromCoreKind::prepared, {});
  }
  if (message && message->kind != ToCoreKind::abort) return message;
  const bool asked = message.has_value();
  for (const NativeError& failure : perform_undo(undo)) log_line("execute: %s", failure.what());
  keeper->dismiss();
  if (asked) channel.send(FromCoreKind::rolled_back, {});
  return std::nullopt;
}

void send_outcome(ControlChannel& channel, const NativeError& error, const PhaseRecorder& timings) {
  if (error.reason == "control_closed") return;  // nobody is left to hear of it
  if (error.reason == "aborted") {
    channel.send(FromCoreKind::rolled_back, encode_timings(timings.phases()));
  } else {
    channel.send(FromCoreKind::failed, encode_failure(error, take_log_lines()));
  }
}

}  // namespace

int run_execute_command(bool early) {
  ControlChannel channel{UniqueFd(kControlDescriptor)};
  PhaseRecorder timings;
  int exit_status = 0;
  try {
    try {
      if (early && !channel.receive_descriptors()) return 0;
      std::unique_ptr<Janitor> keeper;
      const auto message = receive_request(channel, keeper);
      if (!message) {
        flush_log();
        return 0;  // gone before it asked for anything to be executed
      }
      const ExecuteRequest request = read_request(*message);
      arm_execute_faults(request.stop_before_step);
      if (execute_plan(channel, request, timings, keeper.get()))
        channel.send(FromCoreKind::released, encode_timings(timings.phases()));
    } catch (NativeError& error) {
      if (error.phase.empty()) error.phase = timings.current();
      timings.finish();
      log_line("execute: %s", error.what());
      exit_status = error.reason == "aborted" ? 0 : 1;
      send_outcome(channel, error, timings);
    } catch (const std::exception& error) {
      log_line("execute: %s", error.what());
      exit_status = 1;
      channel.send(FromCoreKind::failed, encode_failure(NativeError("bug", error.what())));
    }
  } catch (const NativeError& error) {
    log_line("execute: %s", error.what());  // the answer could not be sent
    exit_status = 1;
  }
  flush_log();
  return exit_status;
}

}  // namespace stasis
