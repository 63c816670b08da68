#include "capture/capture_sockets.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/un.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/native_error.h"
#include "base/sys.h"
#include "capture/path_facts.h"

namespace stasis {
namespace {

constexpr unsigned long kGetSocketNamespace = 0x894c;  // SIOCGSKNS
constexpr size_t kMaximalRights = 253;                 // SCM_MAX_FD
// One message can be as large as the sender's buffer allows; more than this in
// one queue is refused rather than held in memory.
constexpr size_t kMaximalQueueBytes = 64u << 20;

// Not SO_ERROR: reading it clears a pending error.
constexpr int kSocketOptions[] = {SO_SNDBUF,      SO_RCVBUF,       SO_REUSEADDR,       SO_REUSEPORT, SO_KEEPALIVE,
                                  SO_LINGER,      SO_BROADCAST,    SO_OOBINLINE,       SO_PRIORITY,  SO_RCVLOWAT,
                                  SO_MARK,        SO_PASSCRED,     SO_PASSSEC,         SO_TIMESTAMP, SO_TIMESTAMPNS,
                                  SO_DONTROUTE,   SO_BINDTODEVICE, SO_RCVTIMEO,        SO_SNDTIMEO,  SO_ACCEPTCONN,
                                  SO_NO_CHECK,    SO_BUSY_POLL,    SO_RXQ_OVFL,        SO_PEEK_OFF,  SO_PEERCRED,
                                  SO_LOCK_FILTER, SO_INCOMING_CPU, SO_MAX_PACING_RATE, SO_BUF_LOCK};
constexpr int kIpOptions[] = {IP_TOS,     IP_TTL,           IP_FREEBIND,       IP_TRANSPARENT,
                              IP_PKTINFO, IP_RECVTTL,       IP_RECVTOS,        IP_MTU_DISCOVER,
                              IP_RECVERR, IP_MULTICAST_TTL, IP_MULTICAST_LOOP, IP_BIND_ADDRESS_NO_PORT};
constexpr int kIpv6Options[] = {IPV6_V6ONLY,  IPV6_UNICAST_HOPS,   IPV6_RECVPKTINFO,
                                IPV6_TCLASS,  IPV6_FREEBIND,       IPV6_TRANSPARENT,
                                IPV6_RECVERR, IPV6_MULTICAST_HOPS, IPV6_MULTICAST_LOOP};
constexpr int kTcpOptions[] = {
    TCP_NODELAY,       TCP_MAXSEG,     TCP_CORK,         TCP_KEEPIDLE,     TCP_KEEPINTVL,
    TCP_KEEPCNT,       TCP_SYNCNT,     TCP_LINGER2,      TCP_DEFER_ACCEPT, TCP_WINDOW_CLAMP,
    TCP_QUICKACK,      TCP_CONGESTION, TCP_USER_TIMEOUT, TCP_FASTOPEN,     TCP_FASTOPEN_CONNECT,
    TCP_NOTSENT_LOWAT, TCP_SAVE_SYN,   TCP_ULP};

template <size_t Count>
void read_options(CapturedSocket& socket, int own_fd, int level, const int (&names)[Count]) {
  for (const int name : names) {
    sys::Try<std::string> value = sys::try_getsockopt(own_fd, level, name);
    if (value.ok()) socket.options.push_back({level, name, std::move(value.value)});
  }
}

int32_t integer_option(int own_fd, int name) {
  const sys::Try<std::string> value = sys::try_getsockopt(own_fd, SOL_SOCKET, name);
  int32_t number = 0;
  if (value.ok() && value.value.size() == sizeof number) std::memcpy(&number, value.value.data(), sizeof number);
  return number;
}

template <typename Call>
std::string socket_address(Call call, int own_fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (call(own_fd, reinterpret_cast<sockaddr*>(&address), &length) < 0) return {};
  return std::string(reinterpret_cast<const char*>(&address), std::min<size_t>(length, sizeof address));
}

struct Peeked {
  std::string bytes;
  bool has_rights = false;
};

// One MSG_PEEK. Rights in the message are installed in our table by the kernel
// whether we want them or not: they are closed at once.
std::optional<Peeked> peek(int own_fd, size_t room_bytes) {
  Peeked peeked;
  peeked.bytes.resize(room_bytes);
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaximalRights) + CMSG_SPACE(sizeof(ucred)) + 256];
  iovec window{peeked.bytes.data(), peeked.bytes.size()};
  msghdr message{};
  message.msg_iov = &window;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t count = ::recvmsg(own_fd, &message, MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC | MSG_CMSG_CLOEXEC);
  if (count < 0) {
    if (errno == EAGAIN) return std::nullopt;
    throw NativeError::from_errno("recvmsg(MSG_PEEK)", errno);
  }
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part; part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    peeked.has_rights = true;
    const size_t rights = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < rights; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof fd);
      const UniqueFd close_it(fd);
    }
  }
  if (message.msg_flags & MSG_CTRUNC) peeked.has_rights = true;
  if (static_cast<size_t>(count) > room_bytes) throw NativeError("conflict", "a queued message grew while it was read");
  peeked.bytes.resize(static_cast<size_t>(count));
  return peeked;
}

// Sets SO_PEEK_OFF for its scope.
class PeekOffset {
 public:
  explicit PeekOffset(int own_fd) : own_fd_(own_fd), before_(integer_option(own_fd, SO_PEEK_OFF)) { set(0); }
  ~PeekOffset() { set(before_); }

 private:
  void set(int value) { ::setsockopt(own_fd_, SOL_SOCKET, SO_PEEK_OFF, &value, sizeof value); }
  int own_fd_;
  int before_;
};

void capture_unix_queue(CapturedSocket& socket, int own_fd) {
  pollfd readable{own_fd, POLLIN, 0};
  if (::poll(&readable, 1, 0) <= 0 || !(readable.revents & POLLIN)) return;
  const bool is_stream = socket.type == SOCK_STREAM;
  // For a stream this is the length of the queue, else of its first message.
  const auto first_bytes = static_cast<size_t>(std::max(socket.input_bytes, 0));
  if (first_bytes > kMaximalQueueBytes)
    throw NativeError("unsupported", "more than 64 MiB of unread data in a unix socket");
  if (is_stream) {
    if (first_bytes == 0) return;  // readable because the peer has closed
    const std::optional<Peeked> all = peek(own_fd, first_bytes);
    if (!all) return;
    socket.queue_has_rights = all->has_rights;
    if (all->bytes.size() == first_bytes) {
      socket.queue.push_back(all->bytes);
      return;
    }
  }
  // Messages one by one; or a stream that a message with rights or other
  // credentials cuts into pieces.
  const PeekOffset offset(own_fd);
  size_t total_bytes = 0;
  const size_t room_bytes =
      is_stream ? first_bytes : static_cast<size_t>(std::max(integer_option(own_fd, SO_RCVBUF), 1 << 18));
  for (;;) {
    std::optional<Peeked> next = peek(own_fd, std::max(room_bytes, first_bytes));
    if (!next) return;
    if (is_stream && next->bytes.empty()) return;
    socket.queue_has_rights |= next->has_rights;
    total_bytes += next->bytes.size();
    if (total_bytes > kMaximalQueueBytes)
      throw NativeError("unsupported", "more than 64 MiB of unread data in a unix socket");
    if (!is_stream || socket.queue.empty()) {
      socket.queue.push_back(std::move(next->bytes));
    } else {
      socket.queue.front() += next->bytes;
    }
    // At the end of a connection a sequenced-packet socket answers with nothing, again and again.
    if (socket.type == SOCK_SEQPACKET && socket.queue.back().empty()) {
      socket.queue.pop_back();
      return;
    }
  }
}

// The name of a unix socket may be relative to a directory that its task has
// left, and the file may have been removed or replaced since.
void capture_bound_file(CapturedSocket& socket, int own_fd, const ProcDir& proc) {
  const sys::Try<int64_t> opened = sys::try_ioctl(own_fd, SIOCUNIXFILE, nullptr);
  if (!opened.ok()) return;
  const UniqueFd file(static_cast<int>(opened.value));
  const std::string link = "/proc/self/fd/" + std::to_string(file.borrow());
  sys::Try<std::string> path = sys::try_readlinkat(AT_FDCWD, link.c_str());
  const sys::Try<struct statx> stat = sys::try_statx(file.borrow(), "", AT_EMPTY_PATH);
  if (!path.ok() || !stat.ok()) return;
  socket.bound_file.link = std::move(path.value);
  socket.bound_file.stat = to_captured(stat.value);
  socket.bound_file.path_matches = PathChecker(proc).names(socket.bound_file.link, socket.bound_file.stat);
}

}  // namespace

void capture_socket(CapturedOpenFile& file, int own_fd, const ProcDir& proc) {
  CapturedSocket& socket = file.socket;
  socket.present = true;
  socket.inode = file.path.stat.inode;
  socket.family = integer_option(own_fd, SO_DOMAIN);
  socket.type = integer_option(own_fd, SO_TYPE);
  socket.protocol = integer_option(own_fd, SO_PROTOCOL);
  socket.local_address = socket_address(::getsockname, own_fd);
  socket.peer_address = socket_address(::getpeername, own_fd);
  const sys::Try<int64_t> name_space = sys::try_ioctl(own_fd, kGetSocketNamespace, nullptr);
  if (name_space.ok()) {
    const UniqueFd owned(static_cast<int>(name_space.value));
    const sys::Try<struct statx> stat = sys::try_statx(owned.borrow(), "", AT_EMPTY_PATH);
    if (stat.ok()) socket.net_namespace = stat.value.stx_ino;
  }
  sys::try_ioctl(own_fd, FIONREAD, &socket.input_bytes);
  sys::try_ioctl(own_fd, TIOCOUTQ, &socket.output_bytes);
  read_options(socket, own_fd, SOL_SOCKET, kSocketOptions);
  if (socket.family == AF_INET || socket.family == AF_INET6) read_options(socket, own_fd, IPPROTO_IP, kIpOptions);
  if (socket.family == AF_INET6) read_options(socket, own_fd, IPPROTO_IPV6, kIpv6Options);
  if (socket.protocol == IPPROTO_TCP && socket.family != AF_UNIX) {
    read_options(socket, own_fd, IPPROTO_TCP, kTcpOptions);
    socket.tcp_info = sys::try_getsockopt(own_fd, IPPROTO_TCP, TCP_INFO).value;
  }
  if (socket.family == AF_UNIX) capture_bound_file(socket, own_fd, proc);
  if (socket.family == AF_UNIX && !integer_option(own_fd, SO_ACCEPTCONN)) capture_unix_queue(socket, own_fd);
}

}  // namespace stasis
