// Processes: subreaper, and waiting for one that is our child only by adoption.
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "binding/module.h"

namespace stasis::binding {

// setChildSubreaper(enabled)
Napi::Value set_child_subreaper(const Napi::CallbackInfo& info) {
  bool enabled = info[0].As<Napi::Boolean>();
  if (::prctl(PR_SET_CHILD_SUBREAPER, enabled ? 1 : 0, 0, 0, 0) != 0) throw_errno(info.Env(), "prctl", errno);
  return info.Env().Undefined();
}

namespace {

// Blocks one thread of the pool until the child ends; EINTR is retried because
// nothing but the end of the child is awaited.
class ExitWorker : public Napi::AsyncWorker {
 public:
  ExitWorker(Napi::Env env, pid_t pid)
      : Napi::AsyncWorker(env), deferred_(Napi::Promise::Deferred::New(env)), pid_(pid) {}
  Napi::Promise promise() { return deferred_.Promise(); }

  // False: it has not ended yet. What is wrong with the pid, Execute() finds as well.
  bool has_ended() {
    return ::waitid(P_PID, static_cast<id_t>(pid_), &info_, WEXITED | WNOHANG) == 0 && info_.si_pid != 0;
  }

  void Execute() override {
    int status;
    do {
      status = ::waitid(P_PID, static_cast<id_t>(pid_), &info_, WEXITED);
    } while (status != 0 && errno == EINTR);
    if (status != 0) SetError(std::string("waitid: ") + std::strerror(errno));
  }

  void OnOK() override { resolve(); }

  void resolve() {
    Napi::Object result = Napi::Object::New(Env());
    bool exited = info_.si_code == CLD_EXITED;
    result.Set("code", Napi::Number::New(Env(), exited ? info_.si_status : 0));
    result.Set("signal", Napi::Number::New(Env(), exited ? 0 : info_.si_status));
    deferred_.Resolve(result);
  }

  void OnError(const Napi::Error& error) override { deferred_.Reject(error.Value()); }

 private:
  Napi::Promise::Deferred deferred_;
  pid_t pid_;
  siginfo_t info_{};
};

}  // namespace

// waitForExit(pid) -> Promise<{ code, signal }>
Napi::Value wait_for_exit(const Napi::CallbackInfo& info) {
  auto* worker = new ExitWorker(info.Env(), info[0].As<Napi::Number>().Int32Value());
  Napi::Promise promise = worker->promise();
  if (worker->has_ended()) {
    // Without the pool, which is four threads if nobody has asked it for anything.
    worker->resolve();
    delete worker;
  } else {
    worker->Queue();
  }
  return promise;
}

// exitAtOnce(status)
Napi::Value exit_at_once(const Napi::CallbackInfo& info) {
  for (int fd = 0; fd <= 2; ++fd) {
    int flags = ::fcntl(fd, F_GETFL);
    if (::isatty(fd) == 1 || (flags >= 0 && (flags & O_NONBLOCK) != 0)) return info.Env().Undefined();
  }
  ::_exit(info[0].As<Napi::Number>().Int32Value());
}

}  // namespace stasis::binding
