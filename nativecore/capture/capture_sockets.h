// Sockets, through our copy of the descriptor: addresses, options as raw
// values, queue lengths, unread messages of unix sockets. What only a dump of
// the namespace tells (peers, listen queues) is in capture_namespaces.
//
// Undo: SO_PEEK_OFF is put back after reading a datagram queue.
// If we die here: a unix datagram socket with several unread messages may keep
// a peek offset, which only its own MSG_PEEK reads could notice.
#pragma once

#include "capture/capture_context.h"
#include "capture/path_facts.h"

namespace stasis {

void capture_socket(CapturedOpenFile& file, int own_fd, const ProcDir& proc);

}  // namespace stasis
