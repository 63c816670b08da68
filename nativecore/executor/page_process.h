// The page process of a lazy restore: serves faults first, fills in the
// background, follows what the program does to its memory meanwhile.
#pragma once

#include "executor/lazy_memory.h"

namespace stasis {

constexpr char kCommitted = 'c';
constexpr int kAllPagesAreIn = 0;
constexpr int kPagesFailed = 1;  // and said why
constexpr int kRestoreWasGivenUp = 2;

// Returns one of these. `socket`: the coordinator's word, or end of file.
int run_page_process(LazyMemory& memory, UniqueFd socket);

}  // namespace stasis
