// The one exception type of native code: facts, no sentences. It is thrown low,
// caught once per command and sent as control.proto Failure; TypeScript adds
// code, kind and remedy.
#pragma once

#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace stasis {

// Where in a plan it happened; execute only.
struct PlanPosition {
  uint32_t task = 0;
  uint32_t phase = 0;
  uint32_t step = 0;
  std::string op;
  int64_t result = 0;
};

class NativeError : public std::exception {
 public:
  // `reason` is a stable machine word: "syscall", "task_gone", "deadline",
  // "no_space", "aborted", "unsupported", "conflict", "bad_request", "bug", ...
  // The contexts that are open on this thread are copied in here.
  explicit NativeError(std::string reason, std::string what = {});

  // The failure of a system call; the reason follows from the errno.
  static NativeError from_errno(const char* call, int error_number);

  NativeError&& with_what(std::string what) &&;
  NativeError&& with_reason(std::string reason) &&;
  NativeError&& with_pid(int32_t host_pid) &&;
  NativeError&& with_target_fd(int32_t target_fd) &&;
  NativeError&& with_path(std::string path) &&;
  NativeError&& with_address(uint64_t address) &&;
  NativeError&& with_position(PlanPosition position) &&;

  const char* what() const noexcept override { return text_.c_str(); }
  void suppress(NativeError error) { suppressed.push_back(std::move(error)); }

  std::string reason;
  std::string action;  // Failure.what: what was being done
  std::string call;
  int error_number = 0;
  int32_t host_pid = 0;
  int32_t target_fd = -1;
  std::string path;
  uint64_t address = 0;
  std::optional<PlanPosition> position;
  std::vector<std::string> context;  // innermost first
  std::vector<NativeError> suppressed;
  std::string phase;

 private:
  void render();
  std::string text_;  // one line for logs
};

// "ENOSPC", "E123" for an unknown number.
std::string errno_name(int error_number);

// An entry of the calling thread's stack of contexts. Costs two stores; turned
// into text only by the constructor of NativeError.
class ContextFrame {
 public:
  explicit ContextFrame(const char* doing, int32_t host_pid = 0, int32_t target_fd = -1);
  ~ContextFrame();
  ContextFrame(const ContextFrame&) = delete;
  ContextFrame& operator=(const ContextFrame&) = delete;

 private:
  friend class NativeError;
  const char* doing_;
  int32_t host_pid_;
  int32_t target_fd_;
  ContextFrame* outer_;
};

#define STASIS_CONTEXT_JOIN2(a, b) a##b
#define STASIS_CONTEXT_JOIN(a, b) STASIS_CONTEXT_JOIN2(a, b)
// STASIS_CONTEXT("capturing descriptors", host_pid[, target_fd]): `doing` is a
// string literal; whatever is thrown below in this scope carries it.
#define STASIS_CONTEXT(...) ::stasis::ContextFrame STASIS_CONTEXT_JOIN(stasis_context_, __LINE__)(__VA_ARGS__)

// States an invariant; stays on in release builds.
#define STASIS_ASSERT(condition)                                                                   \
  do {                                                                                             \
    if (!(condition)) throw ::stasis::NativeError("bug", std::string(__FILE__ ": ") + #condition); \
  } while (false)

}  // namespace stasis
