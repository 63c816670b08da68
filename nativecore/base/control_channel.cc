#include "base/control_channel.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <protozero/pbf_reader.hpp>
#include <protozero/pbf_writer.hpp>
#include <protozero/varint.hpp>
#include <vector>

#include "base/deadline.h"
#include "base/native_error.h"
#include "base/passed_descriptors.h"

namespace stasis {
namespace {

// A plan carries pipe and tmpfs content in its blobs; more than this is not one of ours.
constexpr uint64_t kMaximalFrameBytes = 512u << 20;
constexpr size_t kMaximalVarintBytes = 10;

void wait_for(int fd, short events, int timeout_ms) {
  for (;;) {
    pollfd entry{fd, events, 0};
    const int ready = ::poll(&entry, 1, timeout_ms);
    if (ready > 0) return;
    if (ready == 0) throw NativeError("deadline", "waiting for the other side of the control socket");
    if (errno != EINTR) throw NativeError::from_errno("poll", errno);
  }
}

// FromCore has one field, so its encoding is tag, length, body: the body is not copied.
std::string header_of(FromCoreKind kind, std::string_view body) {
  std::string inner;
  protozero::write_varint(std::back_inserter(inner), (static_cast<uint64_t>(kind) << 3) | 2u);
  protozero::write_varint(std::back_inserter(inner), body.size());
  std::string header;
  protozero::write_varint(std::back_inserter(header), inner.size() + body.size());
  return header + inner;
}

}  // namespace

bool ControlChannel::receive_descriptors() {
  ReceivedByte message = receive_with_descriptors(socket_.borrow());
  if (message.length == 0 || (message.length < 0 && errno == ECONNRESET)) return false;
  if (message.length < 0) throw NativeError::from_errno("recvmsg", errno);
  const size_t passed = message.descriptors.size();
  if (message.truncated || passed < 2) throw NativeError("bad_request", "receiving descriptors");
  // First out of the way of the numbers that they are to have.
  const int above = kFirstExternalDescriptor + static_cast<int>(passed);
  std::vector<UniqueFd> descriptors;
  for (const UniqueFd& arrived : message.descriptors) {
    descriptors.emplace_back(::fcntl(arrived.borrow(), F_DUPFD_CLOEXEC, above));
    if (!descriptors.back().valid()) throw NativeError::from_errno("fcntl", errno);
  }
  message.descriptors.clear();  // they may have arrived at the numbers that are taken below
  const auto place = [&descriptors](size_t at, int number) {
    if (::dup2(descriptors[at].borrow(), number) < 0) throw NativeError::from_errno("dup2", errno);
  };
  place(0, STDOUT_FILENO);
  place(0, STDERR_FILENO);
  place(1, kImagesDescriptor);
  for (size_t at = 2; at < passed; ++at) place(at, kFirstExternalDescriptor + static_cast<int>(at) - 2);
  return true;
}

void ControlChannel::send(FromCoreKind kind, std::string_view body) {
  const std::string header = header_of(kind, body);
  const std::string_view parts[] = {header, body};
  for (const std::string_view part : parts) {
    size_t done = 0;
    while (done < part.size()) {
      const int more = part.data() == header.data() && !body.empty() ? MSG_MORE : 0;
      const ssize_t sent = ::send(socket_.borrow(), part.data() + done, part.size() - done, MSG_NOSIGNAL | more);
      if (sent >= 0) {
        done += static_cast<size_t>(sent);
      } else if (errno == EAGAIN) {
        wait_for(socket_.borrow(), POLLOUT, -1);
      } else if (errno == EPIPE || errno == ECONNRESET) {
        throw NativeError::from_errno("send", errno).with_reason("control_closed");
      } else if (errno != EINTR) {
        throw NativeError::from_errno("send", errno);
      }
    }
  }
}

void ControlChannel::send_if_room(FromCoreKind kind, std::string_view body) {
  // unix(7) sockets take as much of a stream as fits into one buffer whole or not at all: this is some 40 bytes.
  const std::string frame = header_of(kind, body).append(body);
  (void)!::send(socket_.borrow(), frame.data(), frame.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

std::optional<std::string> ControlChannel::take_frame() {
  if (received_.empty())
    return std::nullopt;  // not by an exception: the first one costs milliseconds in a static program
  const char* position = received_.data();
  const char* const end = position + received_.size();
  uint64_t length = 0;
  try {
    length = protozero::decode_varint(&position, end);
  } catch (const protozero::exception&) {
    if (received_.size() >= kMaximalVarintBytes) throw NativeError("bad_request", "reading a message length");
    return std::nullopt;
  }
  if (length > kMaximalFrameBytes) {
    throw NativeError("bad_request", "reading a message of " + std::to_string(length) + " bytes");
  }
  if (static_cast<uint64_t>(end - position) < length) return std::nullopt;
  std::string frame(position, length);
  received_.erase(0, static_cast<size_t>(position - received_.data()) + length);
  return frame;
}

std::optional<ToCoreMessage> ControlChannel::receive(int timeout_ms) {
  const Deadline deadline = timeout_ms < 0 ? Deadline::never() : Deadline::in_ms(static_cast<uint64_t>(timeout_ms));
  for (;;) {
    if (std::optional<std::string> frame = take_frame()) {
      protozero::pbf_reader message(*frame);
      try {
        while (message.next()) {
          const uint32_t tag = message.tag();
          if (tag >= 1 && tag <= static_cast<uint32_t>(ToCoreKind::keep)) {
            const protozero::data_view body = message.get_view();
            return ToCoreMessage{static_cast<ToCoreKind>(tag), std::string(body.data(), body.size())};
          }
          message.skip();
        }
      } catch (const protozero::exception&) {
      }
      throw NativeError("bad_request", "decoding a message of the control socket");
    }
    wait_for(socket_.borrow(), POLLIN, deadline.remaining_ms());
    char chunk[65536];
    const ssize_t count = ::recv(socket_.borrow(), chunk, sizeof chunk, 0);
    if (count > 0) {
      received_.append(chunk, static_cast<size_t>(count));
    } else if (count == 0 || errno == ECONNRESET) {
      return std::nullopt;
    } else if (errno != EINTR && errno != EAGAIN) {
      throw NativeError::from_errno("recv", errno);
    }
  }
}

bool ControlChannel::has_news() const {
  if (!received_.empty()) return true;
  pollfd entry{socket_.borrow(), POLLIN, 0};
  return ::poll(&entry, 1, 0) > 0;
}

}  // namespace stasis
