// Terminals: modes, window size, session, number.
//
// Undo: nothing to undo. If we die here: the target has seen nothing.
#pragma once

#include "capture/capture_data.h"

namespace stasis {

// Fills file.terminal if the character device behind `own_fd` is a terminal.
void capture_terminal(CapturedOpenFile& file, int own_fd);

}  // namespace stasis
