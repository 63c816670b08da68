// What must be asked from inside a namespace: network configuration and socket
// lists, host names, System V IPC, mounts and the content of tmpfs. Runs beside
// the tracer, in a thread of its own that enters the namespaces with setns(2)
// and is then thrown away. It makes no ptrace call.
//
// Undo: the thread ends. If we die here: the target has seen nothing.
#pragma once

#include <exception>
#include <thread>

#include "capture/capture_context.h"

namespace stasis {

class NamespaceCapture {
 public:
  // Starts at once. Preconditions: the tree is frozen and outlives this object.
  explicit NamespaceCapture(const FrozenTree& tree, const CaptureRequest& request);
  NamespaceCapture(const NamespaceCapture&) = delete;
  NamespaceCapture& operator=(const NamespaceCapture&) = delete;
  ~NamespaceCapture();

  // Waits, and moves what was found into `data`; throws what the thread threw.
  void finish(CaptureData& data, PhaseRecorder& phases);

 private:
  void run(const FrozenTree& tree, const CaptureRequest& request);

  PhaseRecorder phases_;  // what ran beside the tracer
  CaptureData found_;     // only the namespaces' parts and notes
  std::exception_ptr failure_;
  std::thread thread_;
};

}  // namespace stasis
