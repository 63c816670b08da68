#include "base/log_ring.h"

#include <time.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <deque>
#include <mutex>

namespace stasis {
namespace {

constexpr size_t kMaximalLines = 4096;

std::mutex ring_mutex;
std::deque<std::string> ring;
size_t dropped_lines = 0;

}  // namespace

void log_line(const char* format, ...) {
  char text[1024];
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  const int prefix =
      std::snprintf(text, sizeof text, "%lld.%06ld ", static_cast<long long>(now.tv_sec), now.tv_nsec / 1000);
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text + prefix, sizeof text - static_cast<size_t>(prefix), format, arguments);
  va_end(arguments);
  const std::lock_guard lock(ring_mutex);
  if (ring.size() == kMaximalLines) {
    ring.pop_front();
    ++dropped_lines;
  }
  ring.emplace_back(text);
}

std::vector<std::string> take_log_lines() {
  const std::lock_guard lock(ring_mutex);
  std::vector<std::string> lines;
  if (dropped_lines) lines.push_back("(" + std::to_string(dropped_lines) + " older lines dropped)");
  lines.insert(lines.end(), ring.begin(), ring.end());
  ring.clear();
  dropped_lines = 0;
  return lines;
}

void flush_log() {
  std::string text;
  for (const std::string& line : take_log_lines()) text += line + "\n";
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t written = ::write(STDERR_FILENO, text.data() + done, text.size() - done);
    if (written <= 0) return;
    done += static_cast<size_t>(written);
  }
}

}  // namespace stasis
