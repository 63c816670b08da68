// TCP connections between two sockets of the container, v4, v6 and mixed: unread
// and unsent data in both directions, options, and ends of one direction.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include "target.h"

enum { kPlenty = 4 << 20, kSmallBuffer = 65536 };

struct pair {
  int client, server;
};

#define EXPECT(condition) CHECK(condition, "%s does not hold", #condition)

static int on = 1;

// Listens at any port of `family` and connects to it by `client_family`.
static struct pair connect_pair(int family, int client_family) {
  int listener = MUST(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
  struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (family == AF_INET6) {
    if (client_family == AF_INET) six.sin6_addr = in6addr_any;
    MUST(bind(listener, (struct sockaddr*)&six, sizeof six));
    socklen_t length = sizeof six;
    MUST(getsockname(listener, (struct sockaddr*)&six, &length));
    four.sin_port = six.sin6_port;
  } else {
    MUST(bind(listener, (struct sockaddr*)&four, sizeof four));
    socklen_t length = sizeof four;
    MUST(getsockname(listener, (struct sockaddr*)&four, &length));
  }
  MUST(listen(listener, 1));
  struct pair pair;
  pair.client = MUST(socket(client_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (client_family == AF_INET6)
    MUST(connect(pair.client, (struct sockaddr*)&six, sizeof six));
  else
    MUST(connect(pair.client, (struct sockaddr*)&four, sizeof four));
  pair.server = MUST(accept(listener, NULL, NULL));
  MUST(close(listener));
  return pair;
}

static unsigned char byte_at(size_t position) { return (unsigned char)(position * 7 + position / 251); }

// Sends until nobody takes any more; the result is how much was taken.
static size_t fill(int fd) {
  int small = kSmallBuffer;
  MUST(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small));
  static unsigned char bytes[4096];
  size_t sent = 0;
  while (sent < kPlenty) {
    for (size_t i = 0; i < sizeof bytes; ++i) bytes[i] = byte_at(sent + i);
    ssize_t count = send(fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (count < 0 && errno == EAGAIN) break;
    sent += (size_t)MUST(count);
  }
  return sent;
}

static void expect_bytes(int fd, size_t from, size_t length) {
  static unsigned char bytes[4096];
  for (size_t at = from; at < from + length;) {
    struct pollfd readable = {fd, POLLIN, 0};
    EXPECT(poll(&readable, 1, 60000) == 1);
    size_t left = from + length - at;
    ssize_t count = MUST(recv(fd, bytes, left < sizeof bytes ? left : sizeof bytes, 0));
    EXPECT(count > 0);
    for (ssize_t i = 0; i < count; ++i) EXPECT(bytes[i] == byte_at(at + (size_t)i));
    at += (size_t)count;
  }
}

static void expect_text(int fd, const char* text) {
  char read[32] = {0};
  for (size_t at = 0; at < strlen(text);) at += (size_t)MUST(recv(fd, read + at, strlen(text) - at, 0));
  EXPECT(strcmp(read, text) == 0);
}

static void expect_end(int fd) {
  char byte;
  struct pollfd readable = {fd, POLLIN, 0};
  EXPECT(poll(&readable, 1, 60000) == 1);
  EXPECT(recv(fd, &byte, 1, 0) == 0);
}

static void converse(struct pair pair) {
  MUST(send(pair.client, "ask", 3, 0));
  expect_text(pair.server, "ask");
  MUST(send(pair.server, "answer", 6, 0));
  expect_text(pair.client, "answer");
}

static int option(int fd, int level, int name) {
  int value = -1;
  socklen_t length = sizeof value;
  MUST(getsockopt(fd, level, name, &value, &length));
  return value;
}

int main(void) {
  const struct { int family, client_family; } kinds[] = {{AF_INET, AF_INET}, {AF_INET6, AF_INET6}, {AF_INET6, AF_INET}};
  enum { kKinds = 3 };
  struct pair quiet[kKinds], unread[kKinds], full[kKinds], half[kKinds], ending[kKinds];
  size_t filled[kKinds], ended[kKinds];
  for (int i = 0; i < kKinds; ++i) {
    const int family = kinds[i].family, client_family = kinds[i].client_family;
    quiet[i] = connect_pair(family, client_family);
    MUST(setsockopt(quiet[i].client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
    MUST(setsockopt(quiet[i].server, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    MUST(setsockopt(quiet[i].server, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on));
    converse(quiet[i]);

    unread[i] = connect_pair(family, client_family);
    MUST(send(unread[i].client, "to server", 9, 0));
    MUST(send(unread[i].server, "to client", 9, 0));

    full[i] = connect_pair(family, client_family);
    int small = kSmallBuffer;
    MUST(setsockopt(full[i].server, SOL_SOCKET, SO_RCVBUF, &small, sizeof small));
    filled[i] = fill(full[i].client);

    half[i] = connect_pair(family, client_family);
    MUST(send(half[i].client, "last words", 10, 0));
    MUST(shutdown(half[i].client, SHUT_WR));

    ending[i] = connect_pair(family, client_family);
    MUST(setsockopt(ending[i].server, SOL_SOCKET, SO_RCVBUF, &small, sizeof small));
    ended[i] = fill(ending[i].client);
    MUST(shutdown(ending[i].client, SHUT_WR));
  }

  wait_for_check();

  for (int i = 0; i < kKinds; ++i) {
    EXPECT(option(quiet[i].client, IPPROTO_TCP, TCP_NODELAY) == 1);
    EXPECT(option(quiet[i].client, SOL_SOCKET, SO_REUSEADDR) == 0);
    EXPECT(option(quiet[i].server, SOL_SOCKET, SO_REUSEADDR) == 1);
    EXPECT(option(quiet[i].server, SOL_SOCKET, SO_KEEPALIVE) == 1);
    converse(quiet[i]);

    expect_text(unread[i].server, "to server");
    expect_text(unread[i].client, "to client");
    converse(unread[i]);

    expect_bytes(full[i].server, 0, filled[i]);
    converse(full[i]);

    expect_text(half[i].server, "last words");
    expect_end(half[i].server);
    EXPECT(send(half[i].client, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
    MUST(send(half[i].server, "to the end", 10, 0));
    expect_text(half[i].client, "to the end");
    MUST(close(half[i].server));
    expect_end(half[i].client);

    expect_bytes(ending[i].server, 0, ended[i]);
    expect_end(ending[i].server);
    MUST(send(ending[i].server, "to the end", 10, 0));
    expect_text(ending[i].client, "to the end");
  }
  return ok();
}
