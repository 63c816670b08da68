// Unix sockets as node does not have them: packets that keep their borders,
// descriptors that travel with them, and who is at the other end.
#include <sys/socket.h>
#include <sys/un.h>

#include <vector>

#include "base/passed_descriptors.h"
#include "base/unique_fd.h"
#include "binding/module.h"

namespace stasis::binding {
namespace {

// A request of CRIU's protocol carries options; a longer one is none.
constexpr ssize_t kMaximalPacketBytes = 1 << 20;

}  // namespace

// receivePacket(fd) -> Buffer | undefined. One packet of a SOCK_SEQPACKET socket; undefined: the other side has gone.
// Blocks, and repeats on EINTR: whoever waits here has nothing else to do.
Napi::Value receive_packet(const Napi::CallbackInfo& info) {
  const int fd = info[0].As<Napi::Number>().Int32Value();
  ssize_t length;
  do length = ::recv(fd, nullptr, 0, MSG_PEEK | MSG_TRUNC);
  while (length < 0 && errno == EINTR);
  if (length < 0) throw_errno(info.Env(), "recv", errno);
  if (length == 0) return info.Env().Undefined();
  if (length > kMaximalPacketBytes) throw_errno(info.Env(), "recv", EMSGSIZE);
  std::vector<char> packet(static_cast<size_t>(length));
  do length = ::recv(fd, packet.data(), packet.size(), 0);
  while (length < 0 && errno == EINTR);
  if (length < 0) throw_errno(info.Env(), "recv", errno);
  return Napi::Buffer<char>::Copy(info.Env(), packet.data(), static_cast<size_t>(length));
}

// sendPacket(fd, bytes, fds): in one sendmsg(2), the descriptors as SCM_RIGHTS; they stay the caller's.
Napi::Value send_packet(const Napi::CallbackInfo& info) {
  const int fd = info[0].As<Napi::Number>().Int32Value();
  Napi::Buffer<char> bytes = info[1].As<Napi::Buffer<char>>();
  Napi::Array fds = info[2].As<Napi::Array>();
  std::vector<int> passed;
  for (uint32_t i = 0; i < fds.Length(); ++i) passed.push_back(fds.Get(i).As<Napi::Number>().Int32Value());
  const ssize_t sent = send_with_descriptors(fd, {bytes.Data(), bytes.Length()}, passed);
  if (sent < 0) throw_errno(info.Env(), "sendmsg", errno);
  return info.Env().Undefined();
}

// receiveDescriptor(fd) -> fd | undefined: of a message that is there already; undefined: there is none.
Napi::Value receive_descriptor(const Napi::CallbackInfo& info) {
  ReceivedByte message = receive_with_descriptors(info[0].As<Napi::Number>().Int32Value(), MSG_DONTWAIT);
  if (message.length < 0 && errno != EAGAIN) throw_errno(info.Env(), "recvmsg", errno);
  if (message.descriptors.empty()) return info.Env().Undefined();
  // To JavaScript, which closes it.
  return Napi::Number::New(info.Env(), message.descriptors.front().release());
}

// socketPair() -> [fd, fd] of SOCK_SEQPACKET.
Napi::Value socket_pair(const Napi::CallbackInfo& info) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) throw_errno(info.Env(), "socketpair", errno);
  Napi::Array result = Napi::Array::New(info.Env(), 2);
  for (uint32_t i = 0; i < 2; ++i) result.Set(i, Napi::Number::New(info.Env(), ends[i]));
  return result;
}

// peerPid(fd) -> pid of whoever made the socket pair (SO_PEERCRED).
Napi::Value peer_pid(const Napi::CallbackInfo& info) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (::getsockopt(info[0].As<Napi::Number>().Int32Value(), SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
    throw_errno(info.Env(), "getsockopt", errno);
  return Napi::Number::New(info.Env(), peer.pid);
}

// connectUnix(path) -> fd of a connected stream socket. Returns when the listener's queue has it, accepted or not.
Napi::Value connect_unix(const Napi::CallbackInfo& info) {
  std::string path = info[0].As<Napi::String>();
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) throw_errno(info.Env(), "connect", ENAMETOOLONG);
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (socket.borrow() < 0) throw_errno(info.Env(), "socket", errno);
  if (::connect(socket.borrow(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0)
    throw_errno(info.Env(), "connect", errno);
  // To JavaScript, which closes it.
  return Napi::Number::New(info.Env(), socket.release());
}

}  // namespace stasis::binding
