// A loop over independent work with all processors, for the stretches in which
// a stopped tree waits for us.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace stasis {

// More threads than this do not make reading and copying faster: the kernel's locks and the memory are shared.
constexpr unsigned kMaximalWorkers = 4;

// Asked once: libc opens a file for it each time.
inline unsigned processor_count() {
  static const unsigned count = std::max(std::thread::hardware_concurrency(), 1u);
  return count;
}

// Calls work(index, in_caller) once for each index below `count`, in ascending
// order of start; `in_caller` tells calls in the calling thread, which is one of
// the workers. After an exception no more work is started; the first is rethrown.
template <typename Work>
void parallel_for(size_t count, unsigned maximal_workers, Work work) {
  const unsigned workers = static_cast<unsigned>(std::min<size_t>({count, maximal_workers, processor_count()}));
  std::atomic<size_t> next = 0;
  std::mutex failure_mutex;
  std::exception_ptr failure;
  const auto loop = [&](bool in_caller) {
    try {
      for (size_t index; (index = next.fetch_add(1)) < count;) work(index, in_caller);
    } catch (...) {
      next = count;
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (unsigned i = 1; i < workers; ++i) helpers.emplace_back(loop, false);
    loop(true);
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace stasis
