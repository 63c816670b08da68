// TCP connections of the restored tree. Their sockets are in the tasks'
// descriptor tables already; here, through copies of those descriptors, the
// connections are made in repair mode while their packets are dropped, and
// opened to the network right before the tasks run.
//
// Undo: closing a socket in repair mode, which tells the peer nothing. After
// open() the peer is told by FIN or RST, as of any program that ends.
// If we die here: the tasks die with us, and the same holds.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/connection_lock.h"
#include "base/unique_fd.h"
#include "executor/plan_model.h"
#include "executor/restored_tree.h"

namespace stasis {

class RestoredConnections {
 public:
  explicit RestoredConnections(const Plan& plan) : plan_(plan) {}

  // Where the network is there before the tree (Plan.network_descriptor): locks it, because a peer that sends now would
  // be told that nobody is here, and tries each connection. Throws "connection": the address is not there, or the
  // connection exists.
  void try_early();
  // Precondition: all tasks are stopped, and have their descriptors. Throws "connection" where the network does not let
  // one be made.
  void make(const RestoredTree& tree);
  // Ends the locks, the ones from the checkpoint included, and makes the last calls.
  void open();

 private:
  struct Space {
    uint64_t inode;
    UniqueFd name_space;
    std::unique_ptr<ConnectionLock> lock;
    std::vector<ConnectionAddress> connections;
    std::set<std::string> older_locks;
  };
  size_t space_at(UniqueFd name_space);
  void fetch(const RestoredTree& tree);
  void lock(Space& space);

  const Plan& plan_;
  std::vector<UniqueFd> copies_;  // by index in Plan.connections
  std::vector<size_t> space_of_;  // the same
  std::vector<Space> spaces_;
  std::string lock_name_;
};

}  // namespace stasis
