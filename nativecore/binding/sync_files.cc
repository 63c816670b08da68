// Files of one directory onto the disk, all at once: a journal commits once for
// all that wait at the same time. By threads of its own, for as long as it takes:
// node's pool, which others of its users share, has four.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "binding/module.h"

namespace stasis::binding {
namespace {

constexpr size_t kMaximalThreads = 32;

class SyncWorker : public Napi::AsyncWorker {
 public:
  SyncWorker(Napi::Env env, int directory, std::vector<std::string> names)
      : Napi::AsyncWorker(env),
        deferred_(Napi::Promise::Deferred::New(env)),
        directory_(directory),
        names_(std::move(names)) {}
  Napi::Promise promise() { return deferred_.Promise(); }

  void Execute() override {
    std::vector<std::thread> others;
    for (size_t i = 1; i < std::min(names_.size(), kMaximalThreads); ++i) {
      try {
        others.emplace_back([this] { sync_some(); });
      } catch (const std::system_error&) {
        break;  // fewer will do
      }
    }
    sync_some();
    for (std::thread& other : others) other.join();
    if (!failure_.empty()) SetError(failure_);
  }

  void OnOK() override { deferred_.Resolve(Env().Undefined()); }
  void OnError(const Napi::Error& error) override {
    Napi::Object value = error.Value();
    value.Set("call", Napi::String::New(Env(), call_));
    value.Set("errorNumber", Napi::Number::New(Env(), error_number_));
    deferred_.Reject(value);
  }

 private:
  void sync_some() {
    for (size_t at = next_++; at < names_.size(); at = next_++) {
      const UniqueFd file(::openat(directory_, names_[at].c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
      if (!file.valid())
        fail("openat", names_[at]);
      else if (::fsync(file.borrow()) < 0)
        fail("fsync", names_[at]);
    }
  }

  void fail(const char* call, const std::string& name) {
    const int error_number = errno;
    const std::lock_guard guard(lock_);
    if (!failure_.empty()) return;
    call_ = call;
    error_number_ = error_number;
    failure_ = std::string(call) + " of " + name + ": " + std::strerror(error_number);
  }

  Napi::Promise::Deferred deferred_;
  int directory_;
  std::vector<std::string> names_;
  std::atomic<size_t> next_{0};
  std::mutex lock_;
  std::string failure_, call_;
  int error_number_ = 0;
};

}  // namespace

// syncFiles(directoryFd, names) -> Promise<void>
Napi::Value sync_files(const Napi::CallbackInfo& info) {
  const Napi::Array given = info[1].As<Napi::Array>();
  std::vector<std::string> names;
  for (uint32_t i = 0; i < given.Length(); ++i) names.push_back(given.Get(i).As<Napi::String>());
  auto* worker = new SyncWorker(info.Env(), info[0].As<Napi::Number>().Int32Value(), std::move(names));
  Napi::Promise promise = worker->promise();
  worker->Queue();
  return promise;
}

}  // namespace stasis::binding
