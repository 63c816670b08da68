// Packets of given TCP connections are dropped in a network namespace: a table
// of nftables, made over a netlink socket of our own.
//
// Undo: unlock(). If we die here: an owned table vanishes with the last
// descriptor of its netlink socket; one that is to last loses its connections
// after kLastingLockMs, and stays as an empty shell until it is removed by name.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/unique_fd.h"

namespace stasis {

// As packets carry it: what an IPv6 socket calls ::ffff:1.2.3.4 is an IPv4 address. Network byte order.
struct ConnectionAddress {
  size_t length_bytes = 4;  // of an address: 4 or 16
  std::array<uint8_t, 16> local{}, peer{};
  std::array<uint8_t, 2> local_port{}, peer_port{};
};

// From two sockaddr of the same connection; nothing if they are none of AF_INET or AF_INET6.
std::optional<ConnectionAddress> connection_address(std::string_view local, std::string_view peer);

// Packets that we send ourselves, and that are not to be dropped, carry this mark (SO_MARK). It is CRIU's, which
// restores images of ours while a table of ours is there.
inline constexpr uint32_t kOwnPacketMark = 0xc114;

// TCP gives up a peer that does not answer after 924 s (ip-sysctl, tcp_retries2); whoever waits longer than this is
// idle.
inline constexpr uint64_t kLastingLockMs = 3'600'000;

// A socket belongs to the network namespace of the thread that makes it; this is made by one that has entered it.
UniqueFd socket_in(int name_space, int family, int type, int protocol);

class ConnectionLock {
 public:
  // `name_space`: descriptor of the network namespace. Throws "syscall" where it cannot be entered.
  explicit ConnectionLock(int name_space);

  enum class Kind {
    owned,   // NFT_TABLE_F_OWNER (Linux 5.12): ends with us
    lasting  // of nobody: for who comes after us
  };
  // Postconditions: from here on no packet of these connections comes in or goes out.
  // Throws: errno of nf_tables; EOPNOTSUPP or EPROTONOSUPPORT where the kernel has none.
  void lock(const std::string& name, const std::vector<ConnectionAddress>& connections, Kind kind);
  // False: there is no table of this name.
  bool unlock(const std::string& name);

  int borrow() const { return socket_.borrow(); }

 private:
  int transact(const std::string& batch);

  UniqueFd socket_;  // closing it removes the tables that it owns
  uint32_t sequence_ = 0;
};

// A name that images give may become one of a table.
bool is_lock_name(std::string_view name);

}  // namespace stasis
