#include "base/connection_lock.h"

#include <arpa/inet.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <exception>
#include <functional>
#include <thread>

#include "base/native_error.h"
#include "base/sys.h"

namespace stasis {
namespace {

// Before connection tracking (-200): it needs not to know of what is dropped.
constexpr int32_t kHookPriority = -400;
// Elements of one transaction: 2 x 500 x 48 bytes fit in an attribute, which is 64 KiB at most.
constexpr size_t kConnectionsAtOnce = 500;
constexpr int kSendBufferBytes = 1 << 20;
constexpr size_t kMaximalName = 64;
constexpr const char* kSet4 = "four";
constexpr const char* kSet6 = "six";
constexpr const char* kIncoming = "in";
constexpr const char* kOutgoing = "out";

// Messages and attributes (netlink(7)), appended to one buffer.
class Batch {
 public:
  explicit Batch(uint32_t& sequence) : sequence_(sequence) {
    begin(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, AF_UNSPEC, NFNL_SUBSYS_NFTABLES);
    end();
  }

  void begin_table_message(uint16_t type, uint16_t flags) {
    begin(static_cast<uint16_t>(NFNL_SUBSYS_NFTABLES << 8 | type), NLM_F_REQUEST | NLM_F_ACK | flags, NFPROTO_INET, 0);
  }

  void end() {
    const auto length = static_cast<uint32_t>(bytes_.size() - message_);
    std::memcpy(bytes_.data() + message_, &length, sizeof length);
  }

  const std::string& finish() {
    begin(NFNL_MSG_BATCH_END, NLM_F_REQUEST, AF_UNSPEC, NFNL_SUBSYS_NFTABLES);
    end();
    return bytes_;
  }

  void put(uint16_t type, const void* data, size_t length_bytes) {
    const nlattr header{static_cast<uint16_t>(NLA_HDRLEN + length_bytes), type};
    append(&header, sizeof header);
    append(data, length_bytes);
    bytes_.resize(NLMSG_ALIGN(bytes_.size()));
  }
  void put_text(uint16_t type, const std::string& text) { put(type, text.c_str(), text.size() + 1); }
  void put_u32(uint16_t type, uint32_t value) {
    value = htonl(value);
    put(type, &value, sizeof value);
  }
  void put_u64(uint16_t type, uint64_t value) {
    const uint32_t halves[] = {htonl(static_cast<uint32_t>(value >> 32)), htonl(static_cast<uint32_t>(value))};
    put(type, halves, sizeof halves);
  }

  // The attributes that `content` puts are inside of this one.
  template <typename Content>
  void nest(uint16_t type, Content content) {
    const size_t start = bytes_.size();
    const nlattr header{0, static_cast<uint16_t>(type | NLA_F_NESTED)};
    append(&header, sizeof header);
    content();
    const auto length = static_cast<uint16_t>(bytes_.size() - start);
    std::memcpy(bytes_.data() + start, &length, sizeof length);
  }

 private:
  void begin(uint16_t type, uint16_t flags, uint8_t family, uint16_t resource) {
    message_ = bytes_.size();
    nlmsghdr header{};
    header.nlmsg_type = type;
    header.nlmsg_flags = flags;
    header.nlmsg_seq = ++sequence_;
    append(&header, sizeof header);
    const nfgenmsg general{family, NFNETLINK_V0, htons(resource)};
    append(&general, sizeof general);
  }

  void append(const void* data, size_t length_bytes) { bytes_.append(static_cast<const char*>(data), length_bytes); }

  uint32_t& sequence_;
  std::string bytes_;
  size_t message_ = 0;
};

void put_expression(Batch& batch, const char* name, const std::function<void()>& data) {
  batch.nest(NFTA_LIST_ELEM, [&] {
    batch.put_text(NFTA_EXPR_NAME, name);
    batch.nest(NFTA_EXPR_DATA, data);
  });
}

// Goes on in the rule only if this property of the packet has this value.
void put_condition(Batch& batch, uint32_t key, const void* value, size_t length_bytes) {
  put_expression(batch, "meta", [&] {
    batch.put_u32(NFTA_META_KEY, key);
    batch.put_u32(NFTA_META_DREG, NFT_REG32_00);
  });
  put_expression(batch, "cmp", [&] {
    batch.put_u32(NFTA_CMP_SREG, NFT_REG32_00);
    batch.put_u32(NFTA_CMP_OP, NFT_CMP_EQ);
    batch.nest(NFTA_CMP_DATA, [&] { batch.put(NFTA_DATA_VALUE, value, length_bytes); });
  });
}

void put_load(Batch& batch, uint32_t base, uint32_t offset, uint32_t length_bytes, uint32_t to) {
  put_expression(batch, "payload", [&] {
    batch.put_u32(NFTA_PAYLOAD_DREG, to);
    batch.put_u32(NFTA_PAYLOAD_BASE, base);
    batch.put_u32(NFTA_PAYLOAD_OFFSET, offset);
    batch.put_u32(NFTA_PAYLOAD_LEN, length_bytes);
  });
}

void put_verdict(Batch& batch, uint32_t verdict) {
  put_expression(batch, "immediate", [&] {
    batch.put_u32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
    batch.nest(NFTA_IMMEDIATE_DATA,
               [&] { batch.nest(NFTA_DATA_VERDICT, [&] { batch.put_u32(NFTA_VERDICT_CODE, verdict); }); });
  });
}

void put_rule(Batch& batch, const std::string& table, const char* chain, const std::function<void()>& expressions) {
  batch.begin_table_message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND);
  batch.put_text(NFTA_RULE_TABLE, table);
  batch.put_text(NFTA_RULE_CHAIN, chain);
  batch.nest(NFTA_RULE_EXPRESSIONS, expressions);
  batch.end();
}

// Source and destination stand side by side in both headers: IPv4 at 12, IPv6 at 8; ports at the start of TCP's.
void put_drop_rule(Batch& batch, const std::string& table, const char* chain, bool six) {
  put_rule(batch, table, chain, [&] {
    const uint8_t family = six ? NFPROTO_IPV6 : NFPROTO_IPV4, protocol = IPPROTO_TCP;
    put_condition(batch, NFT_META_NFPROTO, &family, sizeof family);
    put_condition(batch, NFT_META_L4PROTO, &protocol, sizeof protocol);
    const uint32_t addresses_bytes = six ? 32 : 8;
    put_load(batch, NFT_PAYLOAD_NETWORK_HEADER, six ? 8 : 12, addresses_bytes, NFT_REG32_00);
    put_load(batch, NFT_PAYLOAD_TRANSPORT_HEADER, 0, 4, NFT_REG32_00 + addresses_bytes / 4);
    put_expression(batch, "lookup", [&] {
      batch.put_text(NFTA_LOOKUP_SET, six ? kSet6 : kSet4);
      batch.put_u32(NFTA_LOOKUP_SREG, NFT_REG32_00);
    });
    put_verdict(batch, NF_DROP);
  });
}

void put_chain(Batch& batch, const std::string& table, const char* name, uint32_t hook) {
  batch.begin_table_message(NFT_MSG_NEWCHAIN, NLM_F_CREATE);
  batch.put_text(NFTA_CHAIN_TABLE, table);
  batch.put_text(NFTA_CHAIN_NAME, name);
  batch.nest(NFTA_CHAIN_HOOK, [&] {
    batch.put_u32(NFTA_HOOK_HOOKNUM, hook);
    batch.put_u32(NFTA_HOOK_PRIORITY, static_cast<uint32_t>(kHookPriority));
  });
  batch.put_u32(NFTA_CHAIN_POLICY, NF_ACCEPT);
  batch.put_text(NFTA_CHAIN_TYPE, "filter");
  batch.end();
  put_rule(batch, table, name, [&] {
    put_condition(batch, NFT_META_MARK, &kOwnPacketMark, sizeof kOwnPacketMark);
    put_verdict(batch, NF_ACCEPT);
  });
  put_drop_rule(batch, table, name, false);
  put_drop_rule(batch, table, name, true);
}

void put_set(Batch& batch, const std::string& table, bool six, bool lasting) {
  batch.begin_table_message(NFT_MSG_NEWSET, NLM_F_CREATE);
  batch.put_text(NFTA_SET_TABLE, table);
  batch.put_text(NFTA_SET_NAME, six ? kSet6 : kSet4);
  batch.put_u32(NFTA_SET_FLAGS, lasting ? NFT_SET_TIMEOUT : 0);
  batch.put_u32(NFTA_SET_KEY_TYPE, 0);
  batch.put_u32(NFTA_SET_KEY_LEN, six ? 36 : 12);
  batch.put_u32(NFTA_SET_ID, six ? 2 : 1);
  if (lasting) batch.put_u64(NFTA_SET_TIMEOUT, kLastingLockMs);
  batch.end();
}

void put_element(Batch& batch, const std::string& key) {
  batch.nest(NFTA_LIST_ELEM,
             [&] { batch.nest(NFTA_SET_ELEM_KEY, [&] { batch.put(NFTA_DATA_VALUE, key.data(), key.size()); }); });
}

// What the rules load, for each direction.
std::array<std::string, 2> keys_of(const ConnectionAddress& address) {
  const auto part = [&](const auto& bytes, size_t length) {
    return std::string(reinterpret_cast<const char*>(bytes.data()), length);
  };
  const std::string local = part(address.local, address.length_bytes), peer = part(address.peer, address.length_bytes);
  const std::string local_port = part(address.local_port, 2), peer_port = part(address.peer_port, 2);
  return {local + peer + local_port + peer_port, peer + local + peer_port + local_port};
}

// Both ends of a connection inside have the same two keys, and a set takes none twice.
std::vector<std::string> unique_keys(const std::vector<ConnectionAddress>& connections, bool six) {
  std::vector<std::string> keys;
  for (const ConnectionAddress& connection : connections) {
    if ((connection.length_bytes == 16) != six) continue;
    for (std::string& key : keys_of(connection)) keys.push_back(std::move(key));
  }
  std::sort(keys.begin(), keys.end());
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
  return keys;
}

}  // namespace

std::optional<ConnectionAddress> connection_address(std::string_view local, std::string_view peer) {
  ConnectionAddress address;
  const auto read = [&](std::string_view bytes, std::array<uint8_t, 16>& host, std::array<uint8_t, 2>& port) {
    sa_family_t family = 0;
    if (bytes.size() < sizeof(sockaddr_in)) return false;
    std::memcpy(&family, bytes.data(), sizeof family);
    std::memcpy(port.data(), bytes.data() + offsetof(sockaddr_in, sin_port), port.size());
    if (family == AF_INET) {
      std::memcpy(host.data(), bytes.data() + offsetof(sockaddr_in, sin_addr), 4);
      return true;
    }
    if (family != AF_INET6 || bytes.size() < sizeof(sockaddr_in6)) return false;
    in6_addr six;
    std::memcpy(&six, bytes.data() + offsetof(sockaddr_in6, sin6_addr), sizeof six);
    if (IN6_IS_ADDR_V4MAPPED(&six)) {
      std::memcpy(host.data(), six.s6_addr + 12, 4);
    } else {
      std::memcpy(host.data(), six.s6_addr, 16);
      address.length_bytes = 16;
    }
    return true;
  };
  if (!read(local, address.local, address.local_port) || !read(peer, address.peer, address.peer_port))
    return std::nullopt;
  return address;
}

UniqueFd socket_in(int name_space, int family, int type, int protocol) {
  UniqueFd made;
  std::exception_ptr failure;
  std::thread thread([&] {
    try {
      sys::setns(name_space, CLONE_NEWNET);
      made = sys::socket(family, type, protocol);
    } catch (...) {
      failure = std::current_exception();
    }
  });
  thread.join();
  if (failure) std::rethrow_exception(failure);
  return made;
}

bool is_lock_name(std::string_view name) {
  return !name.empty() && name.size() <= kMaximalName && (name.starts_with("stasis-") || name.starts_with("CRIU-")) &&
         std::all_of(name.begin(), name.end(),
                     [](unsigned char letter) { return std::isalnum(letter) || letter == '-'; });
}

ConnectionLock::ConnectionLock(int name_space)
    : socket_(socket_in(name_space, AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER)) {
  ::setsockopt(socket_.borrow(), SOL_SOCKET, SO_SNDBUFFORCE, &kSendBufferBytes, sizeof kSendBufferBytes);
}

// 0, or the first error that is reported. A batch is worked off before sendmsg returns: its answers are there then.
int ConnectionLock::transact(const std::string& batch) {
  if (::send(socket_.borrow(), batch.data(), batch.size(), 0) < 0) return errno;
  int first_error = 0;
  bool answered = false;
  char buffer[8192];
  for (;;) {
    const ssize_t count = ::recv(socket_.borrow(), buffer, sizeof buffer, MSG_DONTWAIT);
    if (count < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) return errno;
      return answered ? first_error : EPROTONOSUPPORT;
    }
    for (size_t at = 0; at + NLMSG_HDRLEN <= static_cast<size_t>(count);) {
      nlmsghdr reply;
      std::memcpy(&reply, buffer + at, sizeof reply);
      if (reply.nlmsg_len < NLMSG_HDRLEN || at + reply.nlmsg_len > static_cast<size_t>(count)) return EBADMSG;
      if (reply.nlmsg_type == NLMSG_ERROR && reply.nlmsg_len >= NLMSG_HDRLEN + sizeof(int32_t)) {
        answered = true;
        int32_t error = 0;
        std::memcpy(&error, buffer + at + NLMSG_HDRLEN, sizeof error);
        if (first_error == 0) first_error = -error;
      }
      at += NLMSG_ALIGN(reply.nlmsg_len);
    }
  }
}

void ConnectionLock::lock(const std::string& name, const std::vector<ConnectionAddress>& connections, Kind kind) {
  const bool lasting = kind == Kind::lasting;
  Batch table(sequence_);
  table.begin_table_message(NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL);
  table.put_text(NFTA_TABLE_NAME, name);
  table.put_u32(NFTA_TABLE_FLAGS, lasting ? 0 : NFT_TABLE_F_OWNER);
  table.end();
  for (const bool six : {false, true}) put_set(table, name, six, lasting);
  put_chain(table, name, kIncoming, NF_INET_LOCAL_IN);
  put_chain(table, name, kOutgoing, NF_INET_LOCAL_OUT);
  if (const int error = transact(table.finish()))
    throw NativeError::from_errno("nf_tables", error).with_what("making a table that drops packets");
  for (const bool six : {false, true}) {
    const std::vector<std::string> keys = unique_keys(connections, six);
    for (size_t from = 0; from < keys.size(); from += 2 * kConnectionsAtOnce) {
      Batch elements(sequence_);
      elements.begin_table_message(NFT_MSG_NEWSETELEM, NLM_F_CREATE);
      elements.put_text(NFTA_SET_ELEM_LIST_TABLE, name);
      elements.put_text(NFTA_SET_ELEM_LIST_SET, six ? kSet6 : kSet4);
      elements.nest(NFTA_SET_ELEM_LIST_ELEMENTS, [&] {
        for (size_t i = from; i < std::min(keys.size(), from + 2 * kConnectionsAtOnce); ++i)
          put_element(elements, keys[i]);
      });
      elements.end();
      if (const int error = transact(elements.finish())) {
        unlock(name);
        throw NativeError::from_errno("nf_tables", error).with_what("telling which connections' packets to drop");
      }
    }
  }
}

bool ConnectionLock::unlock(const std::string& name) {
  Batch batch(sequence_);
  batch.begin_table_message(NFT_MSG_DELTABLE, 0);
  batch.put_text(NFTA_TABLE_NAME, name);
  batch.end();
  const int error = transact(batch.finish());
  if (error == ENOENT) return false;
  if (error) throw NativeError::from_errno("nf_tables", error).with_what("removing the table that drops packets");
  return true;
}

}  // namespace stasis
