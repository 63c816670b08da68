// Netlink dumps as the kernel sends them: one payload per message, untouched.
//
// Undo: nothing to undo. If we die here: the target has seen nothing.
#pragma once

#include <string>
#include <vector>

namespace stasis {

// Payloads of all messages of type `type` that answer the request. Throws on an
// error reply, except ENOENT and EINVAL (a protocol that this kernel lacks): none.
std::vector<std::string> netlink_dump(int protocol, uint16_t request_type, uint16_t reply_type, const void* body,
                                      size_t body_length_bytes);

}  // namespace stasis
