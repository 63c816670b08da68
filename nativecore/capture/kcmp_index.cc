#include "capture/kcmp_index.h"

#include "base/native_error.h"
#include "base/sys.h"

namespace stasis {

std::optional<uint32_t> KcmpIndex::find_or_add(pid_t host_pid, uint64_t argument, uint32_t value) {
  size_t low = 0;
  size_t high = sorted_.size();
  // The last first: who adds in order needs one comparison.
  for (bool at_end = true; low < high; at_end = false) {
    const size_t middle = at_end ? high - 1 : (low + high) / 2;
    const Entry& entry = sorted_[middle];
    const sys::Try<int> order = sys::try_kcmp(entry.host_pid, host_pid, type_, entry.argument, argument);
    if (!order.ok()) throw NativeError::from_errno("kcmp", order.error).with_pid(host_pid);
    if (order.value == 0) return entry.value;
    if (order.value == 1) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  sorted_.insert(sorted_.begin() + static_cast<std::ptrdiff_t>(low), Entry{host_pid, argument, value});
  return std::nullopt;
}

}  // namespace stasis
