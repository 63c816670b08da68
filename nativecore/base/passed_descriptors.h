// Descriptors that travel with a message over a unix socket (SCM_RIGHTS, unix(7)).
// Inline, because the addon links no library of ours.
#pragma once

#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "base/unique_fd.h"

namespace stasis {

constexpr size_t kMaximalPassedDescriptors = 250;  // unix(7): SCM_MAX_FD is 253

// One sendmsg(2), repeated on EINTR; the descriptors stay the caller's. What sendmsg returned, and its errno:
// EINVAL for more descriptors than travel with one message.
inline ssize_t send_with_descriptors(int socket, std::string_view bytes, std::span<const int> descriptors) {
  if (descriptors.size() > kMaximalPassedDescriptors) {
    errno = EINVAL;
    return -1;
  }
  iovec part{const_cast<char*>(bytes.data()), bytes.size()};  // sendmsg does not write there
  alignas(cmsghdr) char control[CMSG_SPACE(kMaximalPassedDescriptors * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!descriptors.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size_bytes());
  }
  ssize_t sent;
  do sent = ::sendmsg(socket, &message, MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  return sent;
}

struct ReceivedByte {
  ssize_t length = 0;  // as recvmsg returned it: 1, 0 at the end of the stream, -1 with errno
  char byte = 0;
  std::vector<UniqueFd> descriptors;  // close-on-exec
  bool truncated = false;             // MSG_CTRUNC: more came than there was room for; the kernel has closed those
};

// One byte and what travels with it, by one recvmsg(2) that is repeated on EINTR.
inline ReceivedByte receive_with_descriptors(int socket, int flags = 0) {
  ReceivedByte received;
  iovec part{&received.byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaximalPassedDescriptors * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  do received.length = ::recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
  while (received.length < 0 && errno == EINTR);
  if (received.length < 0) return received;
  received.truncated = (message.msg_flags & MSG_CTRUNC) != 0;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t at = 0; at < count; ++at) {
      int descriptor;
      std::memcpy(&descriptor, CMSG_DATA(header) + at * sizeof descriptor, sizeof descriptor);
      received.descriptors.emplace_back(descriptor);
    }
  }
  return received;
}

}  // namespace stasis
