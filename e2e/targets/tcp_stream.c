// Numbered data both ways over one TCP connection, every number checked.
//   tcp_stream server PORT            echoes one connection after another
//   tcp_stream client ADDRESS PORT STOP   sends numbers and checks their echo until the file STOP is there;
//                                         sends nothing while STOP.pause is there
// Both say READY when the connection stands, "at N" as it goes on, and at its end OK or FAIL.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include "target.h"

#define EXPECT(condition) CHECK(condition, "%s does not hold", #condition)

enum { kUnderWay = 256 << 10, kChunk = 16 << 10, kTellEvery = 256 << 10 };

static unsigned char byte_at(uint64_t position) {
  const uint64_t number = position / 4;
  return (unsigned char)(number >> (8 * (position % 4)));
}

static void check_bytes(const unsigned char* bytes, size_t length, uint64_t position) {
  for (size_t i = 0; i < length; ++i)
    CHECK(bytes[i] == byte_at(position + i), "byte %llu is wrong", (unsigned long long)(position + i));
}

static void tell(uint64_t before, uint64_t now) {
  if (before / kTellEvery == now / kTellEvery) return;
  printf("at %llu\n", (unsigned long long)now);
  fflush(stdout);
}

static struct sockaddr_in address_of(const char* host, const char* port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
  EXPECT(inet_pton(AF_INET, host, &address.sin_addr) == 1);
  return address;
}

static void tell_end(ssize_t result, uint64_t position) {
  printf("%s after %llu\n", result == 0 ? "END" : strerror(errno), (unsigned long long)position);
  fflush(stdout);
}

static void echo(int fd) {
  static unsigned char bytes[kChunk];
  uint64_t position = 0;
  for (;;) {
    const ssize_t count = recv(fd, bytes, sizeof bytes, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      tell_end(count, position);
      return;
    }
    check_bytes(bytes, (size_t)count, position);
    for (ssize_t sent = 0; sent < count;) {
      const ssize_t part = send(fd, bytes + sent, (size_t)(count - sent), MSG_NOSIGNAL);
      if (part < 0 && errno == EINTR) continue;
      // It may end while we answer.
      if (part < 0 && (errno == EPIPE || errno == ECONNRESET)) {
        tell_end(part, position);
        return;
      }
      sent += MUST(part);
    }
    tell(position, position + (uint64_t)count);
    position += (uint64_t)count;
  }
}

static int serve(const char* port) {
  const int on = 1;
  const int listener = MUST(socket(AF_INET, SOCK_STREAM, 0));
  struct sockaddr_in address = address_of("0.0.0.0", port);
  MUST(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
  MUST(bind(listener, (struct sockaddr*)&address, sizeof address));
  MUST(listen(listener, 4));
  printf("LISTENING\n");
  fflush(stdout);
  for (;;) {
    const int fd = accept(listener, NULL, NULL);
    if (fd < 0 && errno == EINTR) continue;
    MUST(fd);
    printf("READY\n");
    fflush(stdout);
    echo(fd);
    MUST(close(fd));
  }
}

static int stream(const char* host, const char* port, const char* stop) {
  static unsigned char bytes[kChunk];
  char pause[4096];
  snprintf(pause, sizeof pause, "%s.pause", stop);
  struct sockaddr_in address = address_of(host, port);
  const int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
  MUST(connect(fd, (struct sockaddr*)&address, sizeof address));
  MUST(fcntl(fd, F_SETFL, O_NONBLOCK));
  printf("READY\n");
  fflush(stdout);
  uint64_t sent = 0, received = 0;
  int ending = 0;
  for (;;) {
    if (!ending && access(stop, F_OK) == 0) {
      MUST(shutdown(fd, SHUT_WR));
      ending = 1;
    }
    const int may_send = !ending && access(pause, F_OK) != 0 && sent - received < kUnderWay;
    struct pollfd ready = {fd, (short)(POLLIN | (may_send ? POLLOUT : 0)), 0};
    if (poll(&ready, 1, 50) <= 0) continue;
    if (ready.revents & POLLOUT) {
      for (size_t i = 0; i < sizeof bytes; ++i) bytes[i] = byte_at(sent + i);
      const ssize_t count = send(fd, bytes, sizeof bytes, MSG_NOSIGNAL);
      if (count < 0 && errno != EAGAIN) FAIL("send: %s", strerror(errno));
      if (count > 0) sent += (uint64_t)count;
    }
    if (!(ready.revents & (POLLIN | POLLHUP | POLLERR))) continue;
    const ssize_t count = recv(fd, bytes, sizeof bytes, 0);
    if (count < 0 && errno == EAGAIN) continue;
    if (count < 0) FAIL("recv: %s", strerror(errno));
    if (count == 0) {
      CHECK(ending, "the peer has ended the connection");
      CHECK(sent == received, "%llu bytes were sent, %llu came back", (unsigned long long)sent,
            (unsigned long long)received);
      return ok();
    }
    check_bytes(bytes, (size_t)count, received);
    tell(received, received + (uint64_t)count);
    received += (uint64_t)count;
    // Not as fast as it can: the machine has other things to do.
    if (received % (64 << 10) < (uint64_t)count) pause_ms(2);
  }
}

int main(int argc, char** argv) {
  if (argc == 3 && strcmp(argv[1], "server") == 0) return serve(argv[2]);
  if (argc == 5 && strcmp(argv[1], "client") == 0) return stream(argv[2], argv[3], argv[4]);
  FAIL("server PORT, or client ADDRESS PORT STOP");
}
