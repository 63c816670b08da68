// Runs `stasis-core capture` in a child process of the test and plays the part
// of TypeScript.
#pragma once

#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <optional>
#include <protozero/pbf_reader.hpp>
#include <protozero/pbf_writer.hpp>
#include <protozero/varint.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/control_channel.h"
#include "base/passed_descriptors.h"
#include "base/testing.h"
#include "capture/capture_command.h"

namespace stasis::testing {

// Those are memory_tracking_test.cc's.
inline bool is_tracking_step(std::string_view name) {
  return name == "protect_memory" || name == "memory_protected" || name == "keeper_started" || name == "keep";
}

// Of the end of a tree that has TCP connections.
inline bool is_ending_step(std::string_view name) { return name == "connections_silenced" || name == "end_announced"; }

inline bool is_connection_step(std::string_view name) {
  return is_ending_step(name) || name == "lock_connections" || name == "connections_locked" ||
         name == "connection_in_repair" || name == "connections_read";
}

class ImagesDirectory {
 public:
  ImagesDirectory() {
    if (!::mkdtemp(path_)) throw Failed("mkdtemp");
  }
  ~ImagesDirectory() { std::filesystem::remove_all(path_); }
  ImagesDirectory(const ImagesDirectory&) = delete;
  ImagesDirectory& operator=(const ImagesDirectory&) = delete;
  std::string path() const { return path_; }

 private:
  char path_[32] = "/tmp/stasis-test-XXXXXX";
};

inline void pass_descriptors(int socket, const std::vector<int>& descriptors) {
  if (send_with_descriptors(socket, {"", 1}, descriptors) != 1) throw Failed("sendmsg");
}

struct FromCoreMessage {
  FromCoreKind kind;
  std::string body;
};

class Core {
 public:
  explicit Core(const std::string& images = "/tmp", const char* fault_step = nullptr,
                const char* fault_fail = nullptr) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) throw Failed("socketpair");
    socket_ = UniqueFd(ends[0]);
    const UniqueFd theirs(ends[1]);
    const UniqueFd directory(::open(images.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(theirs.borrow(), 60);
      ::dup2(directory.borrow(), 61);
      ::dup2(60, kControlDescriptor);
      ::dup2(61, kImagesDescriptor);
      ::syscall(SYS_close_range, 5u, ~0u, 0u);
      if (fault_step) ::setenv("STASIS_FAULT_STEP", fault_step, 1);
      if (fault_fail) ::setenv("STASIS_FAULT_FAIL", fault_fail, 1);
      ::_exit(run_capture_command(false));
    }
  }
  // One that runs already.
  Core(pid_t pid, UniqueFd socket) : pid_(pid), socket_(std::move(socket)) {}
  ~Core() {
    if (pid_ > 0) {
      socket_.reset();
      wait();
    }
  }
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  pid_t pid() const { return pid_; }

  struct Tokens {
    std::string tracking, parent;
  };
  void request_capture(pid_t host_pid, bool leave_running, bool write_pages = true, uint64_t copy_on_write_bytes = 0,
                       const Tokens& tokens = {}) {
    std::string inner;
    protozero::pbf_writer request(inner);
    request.add_uint32(1, 1);
    request.add_int32(2, host_pid);
    request.add_bool(4, leave_running);
    request.add_uint32(5, 10'000);
    request.add_bool(11, write_pages);
    request.add_uint32(12, 1);
    request.add_uint64(14, copy_on_write_bytes);
    request.add_string(15, tokens.tracking);
    request.add_string(16, tokens.parent);
    send(1, inner);
  }
  void send(uint32_t kind, const std::string& inner) {
    std::string message;
    protozero::pbf_writer(message).add_message(kind, inner);
    std::string frame;
    protozero::write_varint(std::back_inserter(frame), message.size());
    frame += message;
    if (::send(socket_.borrow(), frame.data(), frame.size(), MSG_NOSIGNAL) < 0) throw Failed("send");
  }
  void hang_up() { socket_.reset(); }

  // But for what it tells of its progress: on a busy machine a small capture does, too.
  std::optional<FromCoreMessage> receive() {
    for (;;) {
      const char* position = received_.data();
      const char* const end = position + received_.size();
      try {
        const uint64_t length = protozero::decode_varint(&position, end);
        if (static_cast<uint64_t>(end - position) >= length) {
          protozero::pbf_reader message(position, length);
          message.next();
          const protozero::data_view body = message.get_view();
          FromCoreMessage result{static_cast<FromCoreKind>(message.tag()), std::string(body.data(), body.size())};
          received_.erase(0, static_cast<size_t>(position - received_.data()) + length);
          if (result.kind == FromCoreKind::progress) continue;
          return result;
        }
      } catch (const protozero::exception&) {
      }
      char chunk[65536];
      const ssize_t count = ::recv(socket_.borrow(), chunk, sizeof chunk, 0);
      if (count <= 0) return std::nullopt;
      received_.append(chunk, static_cast<size_t>(count));
    }
  }
  // The next message must be of this kind; a failure says why.
  std::string expect(FromCoreKind kind) {
    const std::optional<FromCoreMessage> message = receive();
    if (!message) throw Failed("the core hung up");
    if (message->kind == FromCoreKind::failed && kind != FromCoreKind::failed)
      throw Failed("the core failed: " + failure_text(message->body));
    if (message->kind != kind) throw Failed("message " + std::to_string(static_cast<int>(message->kind)));
    return message->body;
  }
  static std::string failure_text(const std::string& body) {
    std::string text;
    protozero::pbf_reader failure(body);
    while (failure.next()) {
      if (failure.tag() <= 3 || failure.tag() == 10 || failure.tag() == 13) {
        text += failure.get_string() + "; ";
      } else {
        failure.skip();
      }
    }
    return text;
  }
  // Wait status.
  int wait() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return status;
  }

 private:
  pid_t pid_ = -1;
  UniqueFd socket_;
  std::string received_;
};

}  // namespace stasis::testing
