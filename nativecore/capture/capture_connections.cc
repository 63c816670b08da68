#include "capture/capture_connections.h"

#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <tuple>

#include "base/fault_point.h"
#include "base/log_ring.h"
#include "base/native_error.h"
#include "base/sys.h"
#include "base/timing.h"

namespace stasis {
namespace {

constexpr unsigned long kGetSocketNamespace = 0x894c;  // SIOCGSKNS
// include/net/tcp_states.h; what user space may include has no names for them.
constexpr uint8_t kClosed = 7, kListening = 10;
// net.ipv4.tcp_rmem and tcp_wmem are some MiB; more is refused rather than held in memory.
constexpr int32_t kMaximalQueueBytes = 64 << 20;
// All connections together: they travel in one message.
constexpr size_t kMaximalBytes = 1u << 30;
// A retransmission or a timer may come in between even while packets are dropped.
constexpr int kAttempts = 5;

void set_option(int own_fd, int level, int name, int value, const char* what) {
  if (::setsockopt(own_fd, level, name, &value, sizeof value) < 0)
    throw NativeError::from_errno("setsockopt", errno).with_what(what);
}

template <typename Value>
Value get_option(int own_fd, int name, const char* what) {
  Value value{};
  socklen_t length = sizeof value;  // TCP_REPAIR_WINDOW wants exactly that
  if (::getsockopt(own_fd, IPPROTO_TCP, name, &value, &length) < 0)
    throw NativeError::from_errno("getsockopt", errno).with_what(what);
  return value;
}

int32_t queue_bytes(int own_fd, unsigned long request, const char* what) {
  int32_t bytes = 0;
  const sys::Try<int64_t> asked = sys::try_ioctl(own_fd, request, &bytes);
  if (!asked.ok()) throw NativeError::from_errno("ioctl", asked.error).with_what(what);
  return bytes;
}

void repair_on(int own_fd) { set_option(own_fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON, "TCP_REPAIR on"); }

// Without a window probe (Linux 4.19), because nothing is wrong with the peer. The kernel forgets SO_REUSEADDR on the
// way.
void repair_off(int own_fd, int32_t reuse_address) noexcept {
  int value = TCP_REPAIR_OFF_NO_WP;
  if (::setsockopt(own_fd, IPPROTO_TCP, TCP_REPAIR, &value, sizeof value) < 0) {
    value = TCP_REPAIR_OFF;
    if (::setsockopt(own_fd, IPPROTO_TCP, TCP_REPAIR, &value, sizeof value) < 0)
      log_line("a TCP socket stays in repair mode: errno %d", errno);
  }
  if (::setsockopt(own_fd, SOL_SOCKET, SO_REUSEADDR, &reuse_address, sizeof reuse_address) < 0)
    log_line("a TCP socket has lost SO_REUSEADDR: errno %d", errno);
}

class RepairMode {
 public:
  RepairMode(int own_fd, int32_t reuse_address) : own_fd_(own_fd), reuse_address_(reuse_address) { repair_on(own_fd); }
  ~RepairMode() { repair_off(own_fd_, reuse_address_); }
  RepairMode(const RepairMode&) = delete;

 private:
  int own_fd_;
  int32_t reuse_address_;
};

// Linux 6.10 gives TCP sockets SO_PEEK_OFF: what the target has set must not move our reading.
class PeekFromStart {
 public:
  explicit PeekFromStart(int own_fd) : own_fd_(own_fd) {
    const sys::Try<std::string> value = sys::try_getsockopt(own_fd, SOL_SOCKET, SO_PEEK_OFF);
    if (value.ok() && value.value.size() == sizeof before_) std::memcpy(&before_, value.value.data(), sizeof before_);
    if (before_ >= 0) set(-1);
  }
  ~PeekFromStart() {
    if (before_ >= 0) set(before_);
  }
  PeekFromStart(const PeekFromStart&) = delete;

 private:
  void set(int32_t value) { ::setsockopt(own_fd_, SOL_SOCKET, SO_PEEK_OFF, &value, sizeof value); }
  int own_fd_;
  int32_t before_ = -1;
};

std::string peek(int own_fd, int32_t bytes, const char* what) {
  if (bytes < 0 || bytes > kMaximalQueueBytes) throw NativeError("unsupported", "more than 64 MiB in a queue of TCP");
  std::string content(static_cast<size_t>(bytes), '\0');
  size_t done = 0;
  if (bytes > 0) {
    const ssize_t count = ::recv(own_fd, content.data(), content.size(), MSG_PEEK | MSG_DONTWAIT);
    if (count < 0 && errno != EAGAIN) throw NativeError::from_errno("recv(MSG_PEEK)", errno).with_what(what);
    done = count < 0 ? 0 : static_cast<size_t>(count);
  }
  content.resize(done);
  return content;
}

tcp_info read_info(int own_fd) { return get_option<tcp_info>(own_fd, TCP_INFO, "TCP_INFO"); }

// A FIN in the send queue counts as a byte of it (SIOCOUTQ is write_seq - snd_una).
struct Marks {
  uint32_t receive_sequence, send_sequence;
  int32_t input_bytes, output_bytes;
  uint8_t state;
  bool operator==(const Marks&) const = default;
};

Marks read_marks(int own_fd) {
  Marks marks{};
  set_option(own_fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, TCP_RECV_QUEUE, "TCP_REPAIR_QUEUE");
  marks.receive_sequence = get_option<uint32_t>(own_fd, TCP_QUEUE_SEQ, "TCP_QUEUE_SEQ");
  set_option(own_fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, TCP_SEND_QUEUE, "TCP_REPAIR_QUEUE");
  marks.send_sequence = get_option<uint32_t>(own_fd, TCP_QUEUE_SEQ, "TCP_QUEUE_SEQ");
  // While the send queue is chosen, the kernel would take what it sends for sent (tcp_write_xmit).
  set_option(own_fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, TCP_NO_QUEUE, "TCP_REPAIR_QUEUE");
  marks.input_bytes = queue_bytes(own_fd, SIOCINQ, "SIOCINQ");
  marks.output_bytes = queue_bytes(own_fd, SIOCOUTQ, "SIOCOUTQ");
  marks.state = read_info(own_fd).tcpi_state;
  return marks;
}

bool has_own_fin(uint8_t state) {
  constexpr uint8_t kFinWait1 = 4, kLastAck = 9, kClosing = 11;
  return state == kFinWait1 || state == kLastAck || state == kClosing;
}

CapturedConnection read_connection(int own_fd) {
  const PeekFromStart from_start(own_fd);
  for (int attempt = 1;; ++attempt) {
    CapturedConnection found;
    const Marks marks = read_marks(own_fd);
    found.present = true;
    found.receive_sequence = marks.receive_sequence;
    found.send_sequence = marks.send_sequence;
    found.output_bytes = marks.output_bytes;
    found.unsent_bytes = static_cast<uint32_t>(queue_bytes(own_fd, SIOCOUTQNSD, "SIOCOUTQNSD"));
    const int32_t send_bytes = marks.output_bytes - (has_own_fin(marks.state) && marks.output_bytes > 0 ? 1 : 0);
    set_option(own_fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, TCP_RECV_QUEUE, "TCP_REPAIR_QUEUE");
    found.receive_queue = peek(own_fd, marks.input_bytes, "reading the receive queue");
    set_option(own_fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, TCP_SEND_QUEUE, "TCP_REPAIR_QUEUE");
    found.send_queue = peek(own_fd, send_bytes, "reading the send queue");
    set_option(own_fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, TCP_NO_QUEUE, "TCP_REPAIR_QUEUE");
    found.timestamp = get_option<uint32_t>(own_fd, TCP_TIMESTAMP, "TCP_TIMESTAMP");
    found.mss_clamp = get_option<uint32_t>(own_fd, TCP_MAXSEG, "TCP_MAXSEG");
    const auto window = get_option<tcp_repair_window>(own_fd, TCP_REPAIR_WINDOW, "TCP_REPAIR_WINDOW");
    found.window.assign(reinterpret_cast<const char*>(&window), sizeof window);
    const bool whole = found.receive_queue.size() == static_cast<size_t>(marks.input_bytes) &&
                       found.send_queue.size() == static_cast<size_t>(send_bytes);
    if (whole && read_marks(own_fd) == marks) return found;
    if (attempt < kAttempts) continue;
    // Urgent data is cut out of what MSG_PEEK shows.
    if (!whole) throw NativeError("unsupported", "a TCP connection has urgent data in its queue");
    throw NativeError("conflict", "a TCP connection changed while it was read");
  }
}

UniqueFd name_space_of(int own_fd) {
  const sys::Try<int64_t> opened = sys::try_ioctl(own_fd, kGetSocketNamespace, nullptr);
  if (!opened.ok()) throw NativeError::from_errno("ioctl(SIOCGSKNS)", opened.error);
  return UniqueFd(static_cast<int>(opened.value));
}

}  // namespace

bool is_connection(const CapturedSocket& socket) {
  if (socket.type != SOCK_STREAM || socket.protocol != IPPROTO_TCP || socket.tcp_info.empty()) return false;
  if (socket.family != AF_INET && socket.family != AF_INET6) return false;
  const auto state = static_cast<uint8_t>(socket.tcp_info[0]);
  return state != kClosed && state != kListening;
}

// Who is asked for: all, or those whose other end is here as well.
void ConnectionCapture::select(const CaptureContext& context) {
  const auto& files = context.data.open_files;
  if (context.request.connections == CaptureRequest::Connections::none) held_.clear();
  if (context.request.connections != CaptureRequest::Connections::inside) return;
  using End = std::tuple<uint64_t, std::string, std::string>;  // namespace, addresses without flow information
  const auto end_of = [](const CapturedSocket& socket, bool swapped) {
    const auto address = connection_address(socket.local_address, socket.peer_address);
    if (!address) return End{};
    const auto text = [](const auto& host, const auto& port) {
      return std::string(host.begin(), host.end()) + std::string(port.begin(), port.end());
    };
    std::string local = text(address->local, address->local_port), peer = text(address->peer, address->peer_port);
    if (swapped) local.swap(peer);
    return End{socket.net_namespace, std::move(local), std::move(peer)};
  };
  std::set<End> ends;
  for (const Held& held : held_) ends.insert(end_of(files[held.file].socket, false));
  std::erase_if(held_, [&](const Held& held) { return !ends.contains(end_of(files[held.file].socket, true)); });
}

void ConnectionCapture::lock_network(CaptureContext& context) {
  for (Held& held : held_) {
    const CapturedSocket& socket = context.data.open_files[held.file].socket;
    held.name_space = socket.net_namespace;
    const auto address = connection_address(socket.local_address, socket.peer_address);
    if (!address) continue;
    auto space = std::find_if(spaces_.begin(), spaces_.end(),
                              [&](const Space& known) { return known.inode == socket.net_namespace; });
    if (space == spaces_.end()) {
      spaces_.push_back({socket.net_namespace, nullptr, {}});
      space = spaces_.end() - 1;
      space->lock = std::make_unique<ConnectionLock>(name_space_of(held.copy.borrow()).borrow());
    }
    space->connections.push_back(*address);
  }
  lock_name_ = "stasis-" + std::to_string(::getpid()) + "-" + std::to_string(monotonic_now_ns());
  try {
    for (const Space& space : spaces_) space.lock->lock(lock_name_, space.connections, ConnectionLock::Kind::owned);
  } catch (const NativeError& error) {
    context.data.notes.push_back(std::string("packets of TCP connections could not be held back: ") + error.what());
  }
}

void ConnectionCapture::unlock_network() noexcept {
  for (const Space& space : spaces_) {
    try {
      space.lock->unlock(lock_name_);
    } catch (const NativeError& error) {
      log_line("a lock of connections ends only with the core: %s", error.what());
    }
  }
}

void ConnectionCapture::leave_lasting_locks() noexcept {
  if (lasting_lock_name_.empty()) return;
  for (const Space& space : spaces_) {
    try {
      space.lock->lock(lasting_lock_name_, space.connections, ConnectionLock::Kind::lasting);
    } catch (const NativeError& error) {
      log_line("peers of the ended connections may be told that they are gone: %s", error.what());
    }
  }
}

void ConnectionCapture::start_guard(const CaptureContext& context) {
  ConnectionGuard::Duties duties;
  for (const Held& held : held_) duties.descriptors.push_back(held.copy.borrow());
  for (const Space& space : spaces_) duties.descriptors.push_back(space.lock->borrow());
  for (const auto& process : context.tree.processes()) {
    if (process->pidfd.valid()) duties.pidfds.push_back(process->pidfd.borrow());
  }
  duties.put_right = [this] {
    for (const Held& held : held_) repair_off(held.copy.borrow(), held.reuse_address);
  };
  duties.after_end = [this] { leave_lasting_locks(); };
  guard_ = std::make_unique<ConnectionGuard>(duties, context.deadline);
}

void ConnectionCapture::capture(CaptureContext& context) {
  select(context);
  if (held_.empty()) return;
  fault_point("lock_connections");
  STASIS_CONTEXT("capturing TCP connections");
  lasting_lock_name_ = context.request.connection_lock;
  for (Held& held : held_) {
    const sys::Try<std::string> reuse = sys::try_getsockopt(held.copy.borrow(), SOL_SOCKET, SO_REUSEADDR);
    if (reuse.ok() && reuse.value.size() == sizeof held.reuse_address)
      std::memcpy(&held.reuse_address, reuse.value.data(), sizeof held.reuse_address);
  }
  lock_network(context);
  start_guard(context);
  fault_point("connections_locked");
  size_t total_bytes = 0;
  for (Held& held : held_) {
    context.check_abort();
    context.deadline.check("reading TCP connections");
    CapturedOpenFile& file = context.data.open_files[held.file];
    STASIS_CONTEXT("capturing a TCP connection", file.host_pid, file.fd);
    const int own_fd = held.copy.borrow();
    CapturedSocket& socket = file.socket;
    {
      const RepairMode repair(own_fd, held.reuse_address);
      fault_point("connection_in_repair");
      socket.connection = read_connection(own_fd);
    }
    total_bytes += socket.connection.receive_queue.size() + socket.connection.send_queue.size();
    if (total_bytes > kMaximalBytes)
      throw NativeError("unsupported", "more than 1 GiB in the queues of TCP connections");
    // Again: what came before the lock may have changed it.
    const tcp_info info = read_info(own_fd);
    socket.tcp_info = sys::try_getsockopt(own_fd, IPPROTO_TCP, TCP_INFO).value;
    socket.input_bytes = static_cast<int32_t>(socket.connection.receive_queue.size());
    held.bytes_received = info.tcpi_bytes_received;
    held.bytes_acknowledged = info.tcpi_bytes_acked;
  }
  fault_point("connections_read");
}

void ConnectionCapture::check_unchanged() const {
  for (const Held& held : held_) {
    const tcp_info info = read_info(held.copy.borrow());
    if (info.tcpi_bytes_received != held.bytes_received || info.tcpi_bytes_acked != held.bytes_acknowledged)
      throw NativeError("conflict", "a TCP connection went on after it had been read; its data would be lost");
  }
}

void ConnectionCapture::let_go() noexcept {
  if (silenced_) {
    for (const Held& held : held_) repair_off(held.copy.borrow(), held.reuse_address);
  }
  unlock_network();
  // Not waited for, because the tree waits: our destructor does.
  if (guard_) guard_->dismiss();
  held_.clear();
  spaces_.clear();
}

void ConnectionCapture::silence() {
  if (held_.empty()) return;
  silenced_ = true;
  for (const Held& held : held_) repair_on(held.copy.borrow());
  fault_point("connections_silenced");
  guard_->tell_end();
  fault_point("end_announced");
}

void ConnectionCapture::finish_end() {
  if (held_.empty()) return;
  leave_lasting_locks();
  // The guard has copies, too: only with it are the last ones closed.
  guard_.reset();
  held_.clear();
  spaces_.clear();  // the owned tables with them, after the sockets
}

}  // namespace stasis
