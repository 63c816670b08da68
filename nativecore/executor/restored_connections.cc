#include "executor/restored_connections.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/fault_point.h"
#include "base/log_ring.h"
#include "base/native_error.h"
#include "base/sys.h"
#include "base/timing.h"

namespace stasis {
namespace {

constexpr unsigned long kGetSocketNamespace = 0x894c;  // SIOCGSKNS
// The kernel puts what is sent to a receive queue in repair mode into one linear buffer (tcp_send_rcvq).
constexpr size_t kChunkBytes = 16384;
// A packet to an address of our own is delivered before send returns, but for a busy softirq.
constexpr int kDeliveryMs = 1000;

const sockaddr* as_sockaddr(std::string_view bytes) { return reinterpret_cast<const sockaddr*>(bytes.data()); }
sa_family_t family_of(std::string_view address) {
  sa_family_t family = 0;
  std::memcpy(&family, address.data(), sizeof family);
  return family;
}
socklen_t length_of(std::string_view bytes) { return static_cast<socklen_t>(bytes.size()); }

std::string text_of(const ConnectionAddress& address, bool local) {
  char text[INET6_ADDRSTRLEN] = "";
  const bool six = address.length_bytes == 16;
  ::inet_ntop(six ? AF_INET6 : AF_INET, local ? address.local.data() : address.peer.data(), text, sizeof text);
  const auto& port = local ? address.local_port : address.peer_port;
  return (six ? "[" + std::string(text) + "]" : std::string(text)) + ":" + std::to_string(port[0] << 8 | port[1]);
}

[[noreturn]] void fail(const PlanConnection& connection, const char* call, int error) {
  const auto address = connection_address(connection.local, connection.peer);
  throw NativeError::from_errno(call, error)
      .with_reason("connection")
      .with_what("making the TCP connection from " + text_of(*address, true) + " to " + text_of(*address, false));
}

void send_all(int socket, const PlanConnection& connection, std::string_view data) {
  while (!data.empty()) {
    const ssize_t count = ::send(socket, data.data(), std::min(data.size(), kChunkBytes), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail(connection, "send", count < 0 ? errno : EIO);
    data.remove_prefix(static_cast<size_t>(count));
  }
}

// As from the peer; only the kernel of this machine ever sees it.
void send_raw(int name_space, const PlanConnection& connection, std::string_view packet) {
  // What an IPv6 socket calls ::ffff:1.2.3.4 gets packets of IPv4.
  const auto address = connection_address(connection.local, connection.peer);
  sockaddr_in6 six{};
  six.sin6_family = AF_INET6;
  std::memcpy(&six.sin6_addr, address->local.data(), sizeof six.sin6_addr);
  sockaddr_in four{};
  four.sin_family = AF_INET;
  std::memcpy(&four.sin_addr, address->local.data(), sizeof four.sin_addr);
  const bool is_six = address->length_bytes == 16;
  const auto* to = is_six ? reinterpret_cast<const sockaddr*>(&six) : reinterpret_cast<const sockaddr*>(&four);
  const socklen_t to_length = is_six ? sizeof six : sizeof four;
  const UniqueFd raw = socket_in(name_space, to->sa_family, SOCK_RAW, IPPROTO_RAW);
  if (::setsockopt(raw.borrow(), SOL_SOCKET, SO_MARK, &kOwnPacketMark, sizeof kOwnPacketMark) < 0)
    fail(connection, "setsockopt", errno);
  if (::sendto(raw.borrow(), packet.data(), packet.size(), 0, to, to_length) < 0) fail(connection, "sendto", errno);
}

void make_call(int socket, int name_space, const PlanConnection& connection, const PlanSocketCall& call) {
  switch (call.kind) {
    case PlanSocketCall::Kind::setsockopt:
      if (::setsockopt(socket, call.level, call.name, call.data.data(), length_of(call.data)) < 0)
        fail(connection, "setsockopt", errno);
      return;
    case PlanSocketCall::Kind::bind:
      if (::bind(socket, as_sockaddr(connection.local), length_of(connection.local)) < 0)
        fail(connection, "bind", errno);
      return;
    case PlanSocketCall::Kind::connect:
      if (::connect(socket, as_sockaddr(connection.peer), length_of(connection.peer)) < 0)
        fail(connection, "connect", errno);
      return;
    case PlanSocketCall::Kind::send: send_all(socket, connection, call.data); return;
    case PlanSocketCall::Kind::shutdown:
      if (::shutdown(socket, call.level) < 0) fail(connection, "shutdown", errno);
      return;
    case PlanSocketCall::Kind::send_raw: send_raw(name_space, connection, call.data); return;
    case PlanSocketCall::Kind::await_peer_end: {
      pollfd end{socket, POLLRDHUP, 0};
      if (::poll(&end, 1, kDeliveryMs) <= 0) fail(connection, "poll", ETIMEDOUT);
      return;
    }
  }
  throw NativeError("bad_plan", "a connection has a call that no socket takes");
}

}  // namespace

// Where there are no nf_tables, what comes meanwhile is taken by sockets in repair mode, and acknowledged.
void RestoredConnections::lock(Space& space) {
  if (lock_name_.empty())
    lock_name_ = "stasis-" + std::to_string(::getpid()) + "-" + std::to_string(monotonic_now_ns());
  space.lock = std::make_unique<ConnectionLock>(space.name_space.borrow());
  try {
    space.lock->lock(lock_name_, space.connections, ConnectionLock::Kind::owned);
  } catch (const NativeError& error) {
    log_line("packets of TCP connections are not held back: %s", error.what());
  }
}

size_t RestoredConnections::space_at(UniqueFd name_space) {
  const sys::Try<struct statx> stat = sys::try_statx(name_space.borrow(), "", AT_EMPTY_PATH);
  if (!stat.ok()) throw NativeError::from_errno("statx", stat.error);
  const uint64_t inode = stat.value.stx_ino;
  auto space = std::find_if(spaces_.begin(), spaces_.end(), [&](const Space& one) { return one.inode == inode; });
  if (space == spaces_.end()) {
    spaces_.push_back({inode, std::move(name_space), nullptr, {}, {}});
    space = spaces_.end() - 1;
  }
  return static_cast<size_t>(space - spaces_.begin());
}

void RestoredConnections::try_early() {
  if (plan_.network_descriptor == 0) return;
  STASIS_CONTEXT("trying TCP connections");
  fault_point("try_connections");
  UniqueFd network =
      sys::openat(AT_FDCWD,
                  plan_.network_descriptor < 0 ? "/proc/self/ns/net"
                                               : ("/proc/self/fd/" + std::to_string(plan_.network_descriptor)).c_str(),
                  O_RDONLY);
  Space& space = spaces_[space_at(std::move(network))];
  for (const PlanConnection& connection : plan_.connections)
    space.connections.push_back(*connection_address(connection.local, connection.peer));
  lock(space);
  const int name_space = space.name_space.borrow();
  for (const PlanConnection& connection : plan_.connections) {
    const UniqueFd socket = socket_in(name_space, family_of(connection.local), SOCK_STREAM, IPPROTO_TCP);
    for (const PlanSocketCall& call : connection.calls) {
      make_call(socket.borrow(), name_space, connection, call);
      if (call.kind == PlanSocketCall::Kind::connect) break;
    }
  }
}

void RestoredConnections::fetch(const RestoredTree& tree) {
  for (const PlanConnection& connection : plan_.connections) {
    sys::Try<UniqueFd> fetched = sys::try_pidfd_getfd(tree.pidfd(connection.task), TargetFd(connection.fd));
    if (!fetched.ok())
      throw NativeError::from_errno("pidfd_getfd", fetched.error)
          .with_pid(tree.host_pid(connection.task))
          .with_target_fd(connection.fd);
    const sys::Try<int64_t> opened = sys::try_ioctl(fetched.value.borrow(), kGetSocketNamespace, nullptr);
    if (!opened.ok()) throw NativeError::from_errno("ioctl(SIOCGSKNS)", opened.error);
    const size_t at = space_at(UniqueFd(static_cast<int>(opened.value)));
    Space& space = spaces_[at];
    if (!space.lock) space.connections.push_back(*connection_address(connection.local, connection.peer));
    if (!connection.lock.empty()) space.older_locks.insert(connection.lock);
    space_of_.push_back(at);
    copies_.push_back(std::move(fetched.value));
  }
}

void RestoredConnections::make(const RestoredTree& tree) {
  STASIS_CONTEXT("making TCP connections");
  fault_point("make_connections");
  fetch(tree);
  for (Space& space : spaces_) {
    if (!space.lock) lock(space);
  }
  for (size_t i = 0; i < copies_.size(); ++i) {
    const PlanConnection& connection = plan_.connections[i];
    STASIS_CONTEXT("making a TCP connection", tree.host_pid(connection.task), connection.fd);
    for (const PlanSocketCall& call : connection.calls)
      make_call(copies_[i].borrow(), spaces_[space_of_[i]].name_space.borrow(), connection, call);
  }
}

void RestoredConnections::open() {
  STASIS_CONTEXT("opening TCP connections");
  fault_point("unlock_connections");
  for (const Space& space : spaces_) {
    try {
      for (const std::string& older : space.older_locks) space.lock->unlock(older);
      space.lock->unlock(lock_name_);
    } catch (const NativeError& error) {
      log_line("a lock of connections could not be removed: %s", error.what());
    }
  }
  fault_point("finish_connections");
  for (size_t i = 0; i < copies_.size(); ++i) {
    const PlanConnection& connection = plan_.connections[i];
    for (const PlanSocketCall& call : connection.last_calls)
      make_call(copies_[i].borrow(), spaces_[space_of_[i]].name_space.borrow(), connection, call);
  }
}

}  // namespace stasis
