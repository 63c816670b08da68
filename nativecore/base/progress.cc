#include "base/progress.h"

#include <protozero/pbf_writer.hpp>

#include "base/timing.h"

namespace stasis {
namespace {

constexpr uint64_t kEveryNs = 100'000'000;

// Fields of Progress in schema/control.proto.
constexpr uint32_t kPhase = 1;
constexpr uint32_t kDoneBytes = 2;
constexpr uint32_t kTotalBytes = 3;

}  // namespace

Progress::Progress(ControlChannel& channel, const char* phase)
    : channel_(channel), phase_(phase), next_ns_(monotonic_now_ns() + kEveryNs) {}

void Progress::tell() {
  const uint64_t now_ns = monotonic_now_ns();
  if (now_ns < next_ns_) return;
  next_ns_ = now_ns + kEveryNs;
  std::string body;
  protozero::pbf_writer writer(body);
  writer.add_string(kPhase, phase_);
  writer.add_uint64(kDoneBytes, done_bytes_);
  writer.add_uint64(kTotalBytes, total_bytes_);
  channel_.send_if_room(FromCoreKind::progress, body);
}

}  // namespace stasis
