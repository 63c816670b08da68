// Unix socket pairs with data under way, of all three types, and a half that has shut down.
#include <sys/socket.h>

#include "target.h"

static void expect(int fd, const char* wanted, const char* which) {
  char text[64] = {0};
  ssize_t got = recv(fd, text, sizeof text - 1, MSG_DONTWAIT);
  CHECK(got == (ssize_t)strlen(wanted) && strcmp(text, wanted) == 0, "%s: received %zd bytes \"%s\", wanted \"%s\"",
        which, got, text, wanted);
}

int main(void) {
  int stream[2], datagram[2], packets[2], half[2];
  MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, stream));
  MUST(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, datagram));
  MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets));
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, half));
  MUST(send(stream[0], "to the right", 12, 0));
  MUST(send(stream[1], "to the left", 11, 0));
  MUST(send(datagram[0], "one", 3, 0));
  MUST(send(datagram[0], "three", 5, 0));
  MUST(send(packets[1], "first", 5, 0));
  MUST(send(packets[1], "second", 6, 0));
  MUST(send(half[0], "goodbye", 7, 0));
  MUST(shutdown(half[0], SHUT_WR));
  int size = 131072;
  MUST(setsockopt(stream[0], SOL_SOCKET, SO_RCVBUF, &size, sizeof size));
  socklen_t length = sizeof size;
  MUST(getsockopt(stream[0], SOL_SOCKET, SO_RCVBUF, &size, &length));

  wait_for_check();

  expect(stream[1], "to the right", "stream");
  expect(stream[0], "to the left", "stream back");
  // Boundaries between messages are part of the content.
  expect(datagram[1], "one", "datagram");
  expect(datagram[1], "three", "datagram");
  expect(packets[0], "first", "packets");
  expect(packets[0], "second", "packets");
  expect(half[1], "goodbye", "half");
  char byte;
  CHECK(recv(half[1], &byte, 1, 0) == 0, "half: no end of file after shutdown");
  MUST(send(half[1], "still here", 10, 0));
  expect(half[0], "still here", "half back");
  MUST(send(stream[0], "again", 5, 0));
  expect(stream[1], "again", "stream again");
  int now = 0;
  MUST(getsockopt(stream[0], SOL_SOCKET, SO_RCVBUF, &now, &length));
  CHECK(now == size, "the receive buffer is %d bytes, was %d", now, size);
  CHECK((fcntl(stream[0], F_GETFD) & FD_CLOEXEC) != 0, "close-on-exec is lost");
  CHECK((fcntl(datagram[0], F_GETFL) & O_NONBLOCK) != 0, "non-blocking is lost");
  return ok();
}
