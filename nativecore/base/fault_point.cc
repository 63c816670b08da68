#include "base/fault_point.h"

#include <signal.h>
#include <unistd.h>

#include <utility>
#include <vector>

#include "base/native_error.h"

namespace stasis {
namespace {

struct Armed {
  std::string name;
  FaultKind kind;
};

std::vector<Armed> armed;

}  // namespace

bool fault_points_armed = false;

void arm_fault_point(std::string name, FaultKind kind) {
  armed.push_back({std::move(name), kind});
  fault_points_armed = true;
}

void reach_fault_point(const char* name) {
  for (Armed& point : armed) {
    if (point.kind == FaultKind::none || point.name != name) continue;
    const FaultKind kind = std::exchange(point.kind, FaultKind::none);
    if (kind == FaultKind::kill) ::kill(::getpid(), SIGKILL);
    if (kind == FaultKind::stop) ::kill(::getpid(), SIGSTOP);
    if (kind == FaultKind::fail) throw NativeError("fault", name);
  }
}

}  // namespace stasis
