// The twin: a copy of a target's address space, made by a fork inside the freeze
// window, from which pages are read when the target runs again. It shares
// descriptors and directories with the target, has no exit signal, and never
// runs: it is born in a ptrace stop of ours and ends in it.
//
// Undo: end(), or the destructor, kills it; the target's last look at it, which
// lets it go, is the TwinReaper's.
// If we die here: PTRACE_O_EXITKILL kills it. Before that option is set, it is
// let loose on an instruction that ends it (parasite_blob.cc).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/deadline.h"
#include "proc/proc_dir.h"
#include "trace/frozen_tree.h"

namespace stasis {

class Twin {
 public:
  // Takes hold of the twin that the parasite has just forked in `process`.
  // `region`: where the parasite is mapped, in the twin for good.
  static std::unique_ptr<Twin> adopt(FrozenTree& tree, const TracedProcess& process, pid_t ns_pid,
                                     uint64_t region_address, const Deadline& deadline);
  Twin(const Twin&) = delete;
  Twin& operator=(const Twin&) = delete;
  ~Twin() { end(); }

  const ProcDir& proc() const { return proc_; }
  pid_t ns_pid() const { return ns_pid_; }
  // Its smaps, without the parasite's mapping.
  std::string read_smaps() const;
  // Size of the address space in pages, without the parasite's mapping.
  uint64_t read_total_pages() const;

  // Kills it and waits until it is dead. What remains of it is an entry in the
  // target's list of children.
  void end() noexcept;

 private:
  Twin(ProcDir proc, pid_t ns_pid, uint64_t region_address)
      : proc_(std::move(proc)), ns_pid_(ns_pid), region_address_(region_address) {}

  ProcDir proc_;
  pid_t ns_pid_;
  uint64_t region_address_;
  bool ended_ = false;
};

// First field of /proc/PID/statm: pages of the address space.
uint64_t read_total_pages(const ProcDir& proc);

}  // namespace stasis
