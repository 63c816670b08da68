// Listening TCP sockets, v4 and v6, with options; a bound one that does not listen yet.
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "target.h"

static int on = 1;

static int bound(int family, uint16_t port) {
  int fd = MUST(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  MUST(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
  if (family == AF_INET6) {
    MUST(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on));
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_any};
    MUST(bind(fd, (struct sockaddr*)&address, sizeof address));
  } else {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    MUST(bind(fd, (struct sockaddr*)&address, sizeof address));
  }
  return fd;
}

static void serve_one(int listener, int family, uint16_t port) {
  int client = MUST(socket(family, SOCK_STREAM, 0));
  if (family == AF_INET6) {
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_loopback};
    MUST(connect(client, (struct sockaddr*)&address, sizeof address));
  } else {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    MUST(connect(client, (struct sockaddr*)&address, sizeof address));
  }
  int served = MUST(accept(listener, NULL, NULL));
  MUST(send(served, "hello", 5, 0));
  char text[8] = {0};
  CHECK(MUST(recv(client, text, 5, MSG_WAITALL)) == 5 && strcmp(text, "hello") == 0, "received \"%s\"", text);
  close(client);
  close(served);
}

int main(void) {
  int four = bound(AF_INET, 7001);
  MUST(listen(four, 17));
  MUST(setsockopt(four, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on));
  MUST(setsockopt(four, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
  // A kernel without IPv6 has one thing less to check.
  int probe = socket(AF_INET6, SOCK_STREAM, 0);
  int six = probe < 0 ? -1 : bound(AF_INET6, 7002);
  if (six >= 0) MUST(listen(six, 5));

  wait_for_check();

  serve_one(four, AF_INET, 7001);
  if (six >= 0) serve_one(six, AF_INET6, 7002);
  int value = 0;
  socklen_t length = sizeof value;
  MUST(getsockopt(four, SOL_SOCKET, SO_KEEPALIVE, &value, &length));
  CHECK(value != 0, "keep-alive is lost");
  MUST(getsockopt(four, IPPROTO_TCP, TCP_NODELAY, &value, &length));
  CHECK(value != 0, "TCP_NODELAY is lost");
  MUST(getsockopt(four, SOL_SOCKET, SO_REUSEADDR, &value, &length));
  CHECK(value != 0, "SO_REUSEADDR is lost");
  struct tcp_info info;
  length = sizeof info;
  MUST(getsockopt(four, IPPROTO_TCP, TCP_INFO, &info, &length));
  CHECK(info.tcpi_sacked == 17, "the backlog is %u, was 17", info.tcpi_sacked);
  CHECK((fcntl(four, F_GETFD) & FD_CLOEXEC) != 0, "close-on-exec is lost");
  return ok();
}
