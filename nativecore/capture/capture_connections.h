// TCP connections, in repair mode (TCP_REPAIR): sequence numbers, both queues,
// windows. Their packets are dropped from before the reading to the thaw, or to
// the end of the tree and beyond: what the peer sends then is not acknowledged,
// and it sends it again.
//
// Undo: let_go(), which the destructor calls.
// If we die here: the guard takes the sockets out of repair mode, see connection_guard.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/connection_lock.h"
#include "base/unique_fd.h"
#include "capture/capture_context.h"
#include "capture/connection_guard.h"

namespace stasis {

// Has a peer, or had one: everything but listening and unconnected sockets.
bool is_connection(const CapturedSocket& socket);

class ConnectionCapture {
 public:
  ConnectionCapture() = default;
  ConnectionCapture(const ConnectionCapture&) = delete;
  ~ConnectionCapture() { let_go(); }

  // A copy of a connection's descriptor; `file` is its index in CaptureData.open_files.
  void hold(size_t file, UniqueFd copy) { held_.push_back({file, std::move(copy), 0, 0, 0}); }

  // Precondition: no other thread of ours runs. Postconditions: the network is locked, no socket is in repair mode.
  void capture(CaptureContext& context);

  // Throws "conflict" if something came or went since capture() after all: in a kernel without
  // nf_tables, or what was on its way through the kernel when the lock came.
  void check_unchanged() const;

  // The tree goes on. Idempotent.
  void let_go() noexcept;

  // Right before the tree is killed: in repair mode sockets are closed without a word to their peers.
  void silence();
  // When all tasks have gone.
  void finish_end();

 private:
  struct Held {
    size_t file;
    UniqueFd copy;
    uint64_t name_space;  // inode
    uint64_t bytes_received;
    uint64_t bytes_acknowledged;
    int32_t reuse_address = 0;  // TCP_REPAIR overwrites it
  };
  struct Space {
    uint64_t inode;
    std::unique_ptr<ConnectionLock> lock;
    std::vector<ConnectionAddress> connections;
  };

  void select(const CaptureContext& context);
  void lock_network(CaptureContext& context);
  void unlock_network() noexcept;
  void start_guard(const CaptureContext& context);
  void leave_lasting_locks() noexcept;

  std::vector<Held> held_;
  std::vector<Space> spaces_;
  bool silenced_ = false;
  std::string lock_name_;          // of the owned tables
  std::string lasting_lock_name_;  // "": none is to be left
  std::unique_ptr<ConnectionGuard> guard_;
};

}  // namespace stasis
