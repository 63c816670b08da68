#include "capture/netlink_dump.h"

#include <linux/netlink.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>
#include <cstring>

#include "base/native_error.h"
#include "base/sys.h"

namespace stasis {
namespace {

// The kernel fills dump buffers up to what the reader offers, at most 32 KiB.
constexpr size_t kReceiveBytes = 65536;
// An interrupted dump (NLM_F_DUMP_INTR) is inconsistent and taken again.
constexpr int kAttempts = 5;

struct Dump {
  std::vector<std::string> payloads;
  bool interrupted = false;
};

Dump dump_once(int protocol, uint16_t request_type, uint16_t reply_type, const std::string& request_body) {
  const UniqueFd socket = sys::socket(AF_NETLINK, SOCK_RAW, protocol);
  const timeval patience{2, 0};
  ::setsockopt(socket.borrow(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  nlmsghdr header{};
  header.nlmsg_len = static_cast<uint32_t>(NLMSG_HDRLEN + request_body.size());
  header.nlmsg_type = request_type;
  header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  header.nlmsg_seq = 1;
  std::string request(reinterpret_cast<const char*>(&header), sizeof header);
  request += request_body;
  if (::send(socket.borrow(), request.data(), request.size(), 0) < 0)
    throw NativeError::from_errno("send(netlink)", errno);

  Dump dump;
  std::string buffer(kReceiveBytes, '\0');
  for (;;) {
    const ssize_t count = ::recv(socket.borrow(), buffer.data(), buffer.size(), MSG_TRUNC);
    if (count < 0) throw NativeError::from_errno("recv(netlink)", errno);
    if (static_cast<size_t>(count) > buffer.size()) throw NativeError("bug", "a netlink reply was longer than 64 KiB");
    size_t at = 0;
    while (at + NLMSG_HDRLEN <= static_cast<size_t>(count)) {
      nlmsghdr reply;
      std::memcpy(&reply, buffer.data() + at, sizeof reply);
      if (reply.nlmsg_len < NLMSG_HDRLEN || at + reply.nlmsg_len > static_cast<size_t>(count)) {
        throw NativeError("bug", "a netlink reply was malformed");
      }
      const std::string_view payload(buffer.data() + at + NLMSG_HDRLEN, reply.nlmsg_len - NLMSG_HDRLEN);
      dump.interrupted |= (reply.nlmsg_flags & NLM_F_DUMP_INTR) != 0;
      if (reply.nlmsg_type == NLMSG_DONE) return dump;
      if (reply.nlmsg_type == NLMSG_ERROR) {
        int32_t error = 0;
        if (payload.size() >= sizeof error) std::memcpy(&error, payload.data(), sizeof error);
        if (error == -ENOENT || error == -EINVAL) return dump;
        throw NativeError::from_errno("netlink dump", -error);
      }
      if (reply.nlmsg_type == reply_type) dump.payloads.emplace_back(payload);
      at += NLMSG_ALIGN(reply.nlmsg_len);
    }
  }
}

}  // namespace

std::vector<std::string> netlink_dump(int protocol, uint16_t request_type, uint16_t reply_type, const void* body,
                                      size_t body_length_bytes) {
  const std::string request_body(static_cast<const char*>(body), body_length_bytes);
  for (int attempt = 1;; ++attempt) {
    Dump dump = dump_once(protocol, request_type, reply_type, request_body);
    if (!dump.interrupted || attempt == kAttempts) return std::move(dump.payloads);
  }
}

}  // namespace stasis
