// What must be asked from inside a namespace: network configuration and socket
// lists, host names, System V IPC, mounts and the content of tmpfs. Runs beside
// the tracer, in a thread of its own that enters the namespaces with setns(2)
// and is then thrown away. It makes no ptrace call.
//
// Undo: the thread ends. If we die here: the target has seen nothing.
#pragma once

#include <exception>
#include <thread>
#include <vector>

#include "capture/capture_context.h"

namespace stasis {

class NamespaceCapture {
 public:
  // Starts at once. Preconditions: the tasks are captured; tree and request outlive this object.
  explicit NamespaceCapture(const CaptureContext& context);
  NamespaceCapture(const NamespaceCapture&) = delete;
  NamespaceCapture& operator=(const NamespaceCapture&) = delete;
  ~NamespaceCapture();

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
  std::thread thread_;
};

}  // namespace stasis
