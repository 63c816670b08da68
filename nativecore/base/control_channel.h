// The core's end of the conversation with TypeScript (schema/control.proto):
// length-delimited messages on a stream socket, descriptor 3. End of file
// means that the other side has died and everything must be rolled back.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/unique_fd.h"

namespace stasis {

constexpr int kControlDescriptor = 3;
constexpr int kImagesDescriptor = 4;
constexpr int kFirstExternalDescriptor = 10;
constexpr int kParentDescriptor = kFirstExternalDescriptor;  // of the images that a capture may leave pages to

// What TypeScript says; numbers are the fields of ToCore.
enum class ToCoreKind : uint32_t { capture = 1, execute = 2, kill = 3, abort = 4, release = 5, prepare = 6, keep = 7 };

struct ToCoreMessage {
  ToCoreKind kind;
  std::string body;  // the encoded inner message
};

// Numbers are the fields of FromCore.
enum class FromCoreKind : uint32_t {
  captured = 1,
  pages_written = 2,
  thawed = 3,
  killed = 4,
  rolled_back = 5,
  parked = 6,
  released = 7,
  failed = 8,
  progress = 9,
  prepared = 10,
  kept = 11,
};

class ControlChannel {
 public:
  explicit ControlChannel(UniqueFd socket) : socket_(std::move(socket)) {}

  // For a core that was started early, before the first message: one byte, and with it descriptors that become 1 and 2
  // (the log), 4 (the images), and 10, 11, ... False: the other side had no use for us.
  bool receive_descriptors();

  // Blocks until everything is in the socket. Throws "control_closed" if the
  // other side has gone. Does not raise SIGPIPE.
  void send(FromCoreKind kind, std::string_view body);

  // A small message that may be lost: if there is no room in the socket it is not sent, and neither is half of it.
  // From the thread that sends.
  void send_if_room(FromCoreKind kind, std::string_view body);

  // Waits for a whole message: nullopt is end of file. Throws "bad_request" on
  // a frame that is too long or malformed, "deadline" after timeout_ms (-1: none).
  std::optional<ToCoreMessage> receive(int timeout_ms = -1);

  // Whether there is something to receive (a message or end of file); does not wait.
  bool has_news() const;

  // For poll(2) together with other descriptors.
  int borrow() const { return socket_.borrow(); }

 private:
  std::optional<std::string> take_frame();
  UniqueFd socket_;
  std::string received_;  // bytes of frames that are not complete yet
};

}  // namespace stasis
