#include "base/native_error.h"

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace stasis {
namespace {

thread_local ContextFrame* innermost_context = nullptr;

const char* reason_of(int error_number) {
  switch (error_number) {
    case ESRCH: return "task_gone";
    case ENOSPC:
    case EDQUOT:
    case EFBIG: return "no_space";
    case EPERM:
    case EACCES: return "permission";
    case ENOSYS: return "no_kernel_support";
    case ENOMEM: return "no_memory";
    default: return "syscall";
  }
}

}  // namespace

std::string errno_name(int error_number) {
  const char* name = ::strerrorname_np(error_number);
  return name ? name : "E" + std::to_string(error_number);
}

ContextFrame::ContextFrame(const char* doing, int32_t host_pid, int32_t target_fd)
    : doing_(doing), host_pid_(host_pid), target_fd_(target_fd), outer_(innermost_context) {
  innermost_context = this;
}

ContextFrame::~ContextFrame() { innermost_context = outer_; }

NativeError::NativeError(std::string reason_word, std::string what_was_done)
    : reason(std::move(reason_word)), action(std::move(what_was_done)) {
  for (const ContextFrame* frame = innermost_context; frame; frame = frame->outer_) {
    if (host_pid == 0) host_pid = frame->host_pid_;
    if (target_fd < 0) target_fd = frame->target_fd_;
    std::string line = frame->doing_;
    if (frame->host_pid_ > 0) line += " pid=" + std::to_string(frame->host_pid_);
    if (frame->target_fd_ >= 0) line += " fd=" + std::to_string(frame->target_fd_);
    context.push_back(std::move(line));
  }
  if (action.empty() && innermost_context) action = innermost_context->doing_;
  render();
}

NativeError NativeError::from_errno(const char* call, int error_number) {
  NativeError error(reason_of(error_number));
  error.call = call;
  error.error_number = error_number;
  error.render();
  return error;
}

NativeError&& NativeError::with_what(std::string value) && {
  action = std::move(value);
  render();
  return std::move(*this);
}
NativeError&& NativeError::with_reason(std::string value) && {
  reason = std::move(value);
  render();
  return std::move(*this);
}
NativeError&& NativeError::with_pid(int32_t value) && {
  host_pid = value;
  render();
  return std::move(*this);
}
NativeError&& NativeError::with_target_fd(int32_t value) && {
  target_fd = value;
  render();
  return std::move(*this);
}
NativeError&& NativeError::with_path(std::string value) && {
  path = std::move(value);
  render();
  return std::move(*this);
}
NativeError&& NativeError::with_address(uint64_t value) && {
  address = value;
  render();
  return std::move(*this);
}
NativeError&& NativeError::with_position(PlanPosition value) && {
  position = std::move(value);
  return std::move(*this);
}

void NativeError::render() {
  text_ = reason + ": " + action;
  if (!call.empty()) text_ += ": " + call;
  if (error_number) text_ += ": " + errno_name(error_number) + " (" + std::strerror(error_number) + ")";
  if (host_pid) text_ += " pid=" + std::to_string(host_pid);
  if (target_fd >= 0) text_ += " fd=" + std::to_string(target_fd);
  if (!path.empty()) text_ += " path=" + path;
  if (address) {
    char hexadecimal[32];
    std::snprintf(hexadecimal, sizeof hexadecimal, " address=0x%llx", static_cast<unsigned long long>(address));
    text_ += hexadecimal;
  }
}

}  // namespace stasis
