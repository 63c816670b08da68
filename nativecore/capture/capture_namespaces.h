// What must be asked from inside a namespace: network configuration and socket
// lists, host names, System V IPC, mounts and the content of tmpfs. Runs beside
// the tracer, in a thread of its own that enters the namespaces with setns(2)
// and is then thrown away. It makes no ptrace call.
//
// Undo: the thread ends. If we die here: the target has seen nothing.
#pragma once

#include <exception>
#include <semaphore>
#include <thread>
#include <vector>

#include "capture/capture_context.h"

namespace stasis {

class NamespaceCapture {
 public:
  // Its thread is made here, before the freeze, which a new one would prolong by 0.2 ms.
  NamespaceCapture();
  NamespaceCapture(const NamespaceCapture&) = delete;
  NamespaceCapture& operator=(const NamespaceCapture&) = delete;
  ~NamespaceCapture();

  // Preconditions: it is known in which namespaces the tasks are; tree and request outlive this object.
  void start(const CaptureContext& context);
  // Waits, and moves what was found into `data`; throws what the thread threw.
  void finish(CaptureData& data, PhaseRecorder& phases);

 private:
  void run(const CaptureRequest& request);
  template <typename Read>
  void for_each_namespace(const char* kind, int type, Read read);

  struct Member {
    const TracedProcess* process;
    std::vector<CapturedNamespaceId> namespaces;
  };
  std::vector<Member> members_;
  std::vector<CapturedNamespaceId> own_;
  PhaseRecorder phases_;  // what ran beside the tracer
  CaptureData found_;     // only the namespaces' parts and notes
  std::exception_ptr failure_;
  const CaptureRequest* request_ = nullptr;  // null until there is something to do
  std::binary_semaphore told_{0};
  std::thread thread_;
};

}  // namespace stasis
