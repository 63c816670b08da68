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

// Where the network is there before the tree (Plan.network_descriptor): can each connection be made?
// Throws "connection": the address is not there, or the connection exists. Nothing is left behind.
void try_connections(const Plan& plan);

class RestoredConnections {
 public:
  RestoredConnections(const Plan& plan, const RestoredTree& tree) : plan_(plan), tree_(tree) {}

  // Throws "connection" where the network does not let it be made.
  void make();
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
  void fetch();
  void lock_network();

  const Plan& plan_;
  const RestoredTree& tree_;
  std::vector<UniqueFd> copies_;  // by index in Plan.connections
  std::vector<size_t> space_of_;  // the same
  std::vector<Space> spaces_;
  std::string lock_name_;
};

}  // namespace stasis
