// The core, started by the launcher, so that it is there when node asks for it:
// the two start beside each other, and node, which is large, need not fork.
#pragma once

#include <string>

namespace stasis {

// Starts `core SUBCOMMAND early`, a child of this process, which will be node. Returns what node is told of it,
// "STASIS_EARLY_CORE=SUBCOMMAND:SOCKET:PID"; empty if there is none: then node starts one, and says what is wrong.
//
//   Undo            the core ends at the end of file of its socket, asked for or not
//   If we die here  the same
std::string start_core_early(const std::string& core, const char* subcommand);

}  // namespace stasis
