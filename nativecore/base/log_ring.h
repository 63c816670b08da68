// Log lines kept in memory while targets are stopped and written to descriptor
// 2 afterwards: a slow or stuck reader of our log must not lengthen a freeze.
// One ring per process; the oldest lines go first when it is full.
#pragma once

#include <string>
#include <vector>

namespace stasis {

__attribute__((format(printf, 1, 2))) void log_line(const char* format, ...);

// The lines that have not been taken yet, oldest first; empties the ring.
std::vector<std::string> take_log_lines();

// Writes what is left in the ring to descriptor 2. Failure to write is ignored:
// there is nowhere to tell it.
void flush_log();

}  // namespace stasis
