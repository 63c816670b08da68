// `stasis-core capture`: one capture over the control socket (descriptor 3),
// page files into the images directory (descriptor 4).
#pragma once

namespace stasis {

// `early`: both come later, over the control socket.
// Returns the exit status: 0 when the conversation ended as asked, 1 otherwise.
int run_capture_command(bool early);

}  // namespace stasis
