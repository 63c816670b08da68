#include "base/failure_message.h"

#include <protozero/pbf_writer.hpp>

namespace stasis {

std::string encode_failure(const NativeError& error, const std::vector<std::string>& log) {
  std::string encoded;
  protozero::pbf_writer message(encoded);
  message.add_string(1, error.reason);
  message.add_string(2, error.action);
  if (!error.call.empty()) message.add_string(3, error.call);
  if (error.error_number) message.add_int32(4, error.error_number);
  if (error.host_pid) message.add_int32(5, error.host_pid);
  if (error.target_fd) message.add_int32(6, error.target_fd);
  if (!error.path.empty()) message.add_string(7, error.path);
  if (error.address) message.add_uint64(8, error.address);
  if (error.position) {
    protozero::pbf_writer position(message, 9);
    position.add_uint32(1, error.position->task);
    position.add_uint32(2, error.position->phase);
    position.add_uint32(3, error.position->step);
    position.add_string(4, error.position->op);
    position.add_int64(5, error.position->result);
  }
  for (const std::string& line : error.context) message.add_string(10, line);
  for (const NativeError& suppressed : error.suppressed) message.add_message(11, encode_failure(suppressed));
  if (!error.phase.empty()) message.add_string(12, error.phase);
  for (const std::string& line : log) message.add_string(13, line);
  return encoded;
}

std::string encode_timings(const std::vector<TimedPhase>& phases, uint32_t field) {
  std::string encoded;
  protozero::pbf_writer message(encoded);
  for (const TimedPhase& phase : phases) {
    protozero::pbf_writer timing(message, field);
    timing.add_string(1, phase.phase);
    timing.add_uint64(2, phase.start_ns);
    timing.add_uint64(3, phase.end_ns);
  }
  return encoded;
}

}  // namespace stasis
