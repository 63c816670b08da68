// Tables that drop the packets of connections, in a network namespace of our own.
#include "base/connection_lock.h"

#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "base/native_error.h"
#include "base/sys.h"
#include "base/testing.h"

using namespace stasis;
using namespace stasis::testing;

namespace {

constexpr int kLongEnoughMs = 10'000;
// As long as packets of a working loopback never need.
constexpr int kSilenceMs = 300;

std::string bytes_of(const void* data, size_t length) { return std::string(static_cast<const char*>(data), length); }

// Both ends of a connection over loopback, and its addresses as the first end has them.
struct Connection {
  explicit Connection(int family) {
    const UniqueFd listener = sys::socket(family, SOCK_STREAM, 0);
    sockaddr_storage address{};
    socklen_t length = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    address.ss_family = static_cast<sa_family_t>(family);
    if (family == AF_INET) {
      reinterpret_cast<sockaddr_in*>(&address)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    } else {
      reinterpret_cast<sockaddr_in6*>(&address)->sin6_addr = in6addr_loopback;
    }
    auto* const name = reinterpret_cast<sockaddr*>(&address);
    if (::bind(listener.borrow(), name, length) < 0 || ::listen(listener.borrow(), 1) < 0 ||
        ::getsockname(listener.borrow(), name, &length) < 0)
      throw Failed("cannot listen");
    first = sys::socket(family, SOCK_STREAM, 0);
    if (::connect(first.borrow(), name, length) < 0) throw Failed("cannot connect");
    second = UniqueFd(::accept(listener.borrow(), nullptr, nullptr));
    peer = bytes_of(&address, length);
    ::getsockname(first.borrow(), name, &length);
    local = bytes_of(&address, length);
  }

  ConnectionAddress where() const { return connection_address(local, peer).value(); }
  void send(char byte) const { EXPECT_EQ(::send(first.borrow(), &byte, 1, 0), ssize_t{1}); }
  bool arrives(int timeout_ms) const {
    pollfd readable{second.borrow(), POLLIN, 0};
    return ::poll(&readable, 1, timeout_ms) == 1;
  }
  char take() const {
    char byte = 0;
    EXPECT_EQ(::recv(second.borrow(), &byte, 1, 0), ssize_t{1});
    return byte;
  }

  UniqueFd first, second;
  std::string local, peer;
};

// The test runs in a child: its namespace goes with it.
void in_own_network(const std::function<void()>& test) {
  const pid_t child = ::fork();
  if (child == 0) {
    try {
      if (::unshare(CLONE_NEWNET) < 0) throw Failed("unshare");
      ifreq loopback{};
      std::strcpy(loopback.ifr_name, "lo");
      loopback.ifr_flags = IFF_UP;
      if (::ioctl(sys::socket(AF_INET, SOCK_DGRAM, 0).borrow(), SIOCSIFFLAGS, &loopback) < 0) throw Failed("lo");
      test();
      ::_exit(0);
    } catch (const std::exception& error) {
      std::printf("        %s\n", error.what());
      std::fflush(stdout);
      ::_exit(1);
    }
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

ConnectionLock here() { return ConnectionLock(sys::openat(AT_FDCWD, "/proc/self/ns/net", O_RDONLY).borrow()); }

void holds_back(int family, ConnectionLock::Kind kind) {
  in_own_network([&] {
    const Connection locked(family), other(family);
    ConnectionLock lock = here();
    lock.lock("stasis-test", {locked.where()}, kind);
    locked.send('a');
    other.send('b');
    EXPECT(other.arrives(kLongEnoughMs));
    EXPECT_EQ(other.take(), 'b');
    EXPECT(!locked.arrives(kSilenceMs));
    EXPECT(lock.unlock("stasis-test"));
    EXPECT(!lock.unlock("stasis-test"));
    EXPECT(locked.arrives(kLongEnoughMs));  // it is sent again
    EXPECT_EQ(locked.take(), 'a');
  });
}

void holds_back_ipv4() { holds_back(AF_INET, ConnectionLock::Kind::owned); }
void holds_back_ipv6() { holds_back(AF_INET6, ConnectionLock::Kind::owned); }
void holds_back_for_long() { holds_back(AF_INET, ConnectionLock::Kind::lasting); }

void owned_ends_with_its_owner() {
  in_own_network([] {
    const Connection connection(AF_INET);
    {
      ConnectionLock lock = here();
      lock.lock("stasis-test", {connection.where()}, ConnectionLock::Kind::owned);
      connection.send('a');
      EXPECT(!connection.arrives(kSilenceMs));
    }
    EXPECT(connection.arrives(kLongEnoughMs));
    EXPECT(!here().unlock("stasis-test"));
  });
}

void lasting_is_removed_by_another() {
  in_own_network([] {
    const Connection connection(AF_INET);
    here().lock("stasis-test", {connection.where()}, ConnectionLock::Kind::lasting);
    connection.send('a');
    EXPECT(!connection.arrives(kSilenceMs));
    EXPECT(here().unlock("stasis-test"));
    EXPECT(connection.arrives(kLongEnoughMs));
  });
}

void takes_thousands() {
  in_own_network([] {
    const Connection connection(AF_INET);
    std::vector<ConnectionAddress> many;
    for (int i = 0; i < 3000; ++i) {
      ConnectionAddress one = connection.where();
      one.peer = {10, 0, static_cast<uint8_t>(i >> 8), static_cast<uint8_t>(i)};
      many.push_back(one);
    }
    many.push_back(connection.where());
    ConnectionLock lock = here();
    lock.lock("stasis-test", many, ConnectionLock::Kind::owned);
    connection.send('a');
    EXPECT(!connection.arrives(kSilenceMs));
    EXPECT(lock.unlock("stasis-test"));
    EXPECT(connection.arrives(kLongEnoughMs));
  });
}

void reads_addresses() {
  sockaddr_in six_as_four{};
  six_as_four.sin_family = AF_INET;
  six_as_four.sin_port = htons(80);
  six_as_four.sin_addr.s_addr = htonl(0x0a000001);
  sockaddr_in6 mapped{};
  mapped.sin6_family = AF_INET6;
  mapped.sin6_port = htons(4000);
  const uint8_t prefix[] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2};
  std::memcpy(&mapped.sin6_addr, prefix, sizeof prefix);
  const auto address = connection_address(bytes_of(&six_as_four, sizeof six_as_four), bytes_of(&mapped, sizeof mapped));
  EXPECT(address.has_value());
  EXPECT_EQ(address->length_bytes, size_t{4});
  EXPECT_EQ(static_cast<int>(address->peer[3]), 2);
  EXPECT(!connection_address("", "").has_value());
  EXPECT(!connection_address(std::string(40, '\7'), std::string(40, '\7')).has_value());
  EXPECT(is_lock_name("stasis-0123456789abcdef"));
  EXPECT(is_lock_name("CRIU-6f1c0f62-5a3e-4a62-9b7c-0d5a7e1f2b3c"));
  for (const char* name : {"", "filter", "stasis-../x", "stasis-\n"}) EXPECT(!is_lock_name(name));
  EXPECT(!is_lock_name("stasis-" + std::string(100, 'a')));
}

}  // namespace

int main(int argc, char** argv) {
  return run_cases(
      {
          {"holds back the packets of one connection", holds_back_ipv4},
          {"holds back the packets of a connection over IPv6", holds_back_ipv6},
          {"holds back packets until it is removed", holds_back_for_long},
          {"an owned table ends with its owner", owned_ends_with_its_owner},
          {"a lasting table is removed by another", lasting_is_removed_by_another},
          {"takes thousands of connections", takes_thousands},
          {"reads addresses and names", reads_addresses},
      },
      argc, argv);
}
