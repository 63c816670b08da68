// `stasis-core execute`: one restore, over the control socket.
#pragma once

namespace stasis {

// Exit status: 0 released or rolled back, 1 failed (and said so on the socket).
int run_execute_command();

}  // namespace stasis
