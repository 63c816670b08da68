// `stasis-core execute`: one restore, over the control socket.
#pragma once

namespace stasis {

// `early`: the other descriptors come over the control socket.
// Exit status: 0 released or rolled back, 1 failed (and said so on the socket).
int run_execute_command(bool early);

}  // namespace stasis
