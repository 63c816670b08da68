// Descriptors: UniqueFd is one of ours and closes it; TargetFd is a number in
// another process's table and can only be printed and passed on.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <string>
#include <utility>

namespace stasis {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd() { reset(); }

  bool valid() const { return fd_ >= 0; }
  int borrow() const { return fd_; }
  // Only at a handover: the caller says in a comment who closes it now.
  [[nodiscard]] int release() { return std::exchange(fd_, -1); }
  // close(2) is never retried: on Linux the descriptor is gone whatever it returns.
  void reset() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }

 private:
  int fd_ = -1;
};

class TargetFd {
 public:
  explicit TargetFd(int32_t number) : number_(number) {}
  int32_t number() const { return number_; }
  std::string to_string() const { return std::to_string(number_); }
  friend bool operator==(TargetFd, TargetFd) = default;

 private:
  int32_t number_;
};

}  // namespace stasis
