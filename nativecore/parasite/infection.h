// The parasite in one process: mapped, run once in every thread, taken out.
//
// Undo: take_out(), or the destructor.
// If we die here: while the parasite runs or waits, each thread returns to its
// interrupted context by itself after at most kWaitNanoseconds; the mapping
// stays behind, unused. While it is mapped and unmapped, the leader has a way
// home (way_home.h). A twin that nobody holds any more ends at once.
// A thread under a seccomp filter that kills on what the parasite calls is not
// safe in the few microseconds in which it runs.
#pragma once

#include <cerrno>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/deadline.h"
#include "base/sys.h"
#include "parasite/parasite_abi.h"
#include "parasite/stale_parasite.h"
#include "parasite/way_home.h"
#include "trace/frozen_tree.h"
#include "trace/remote_syscall.h"
#include "trace/return_path.h"
#include "trace/thread_state.h"

namespace stasis {

// What was read from a thread before anything was run in it.
struct InfectedThread {
  TracedThread* thread = nullptr;
  InterruptedContext context;
  const std::string* xstate = nullptr;
  uint64_t rseq_address = 0;
  uint64_t rseq_critical_section_address = 0;  // non-zero if the thread was inside a critical section
  uint64_t rseq_abort_ip = 0;
  bool seccomp = false;
};

// What can be done before the tree is frozen.
void prepare_infection();

// What the parasite is to make in its process, besides reading.
struct ParasiteWish {
  bool uffd = false;  // a userfaultfd of its memory (capture/memory_tracking.h)
};

// A copy of the process's memory, in a process that never runs (capture/twin.h).
struct TwinWish {
  bool wanted = false;
  uint64_t memory_bytes = 0;  // how much there is to fork, for the patience of the others
};

class Infection {
 public:
  // Prepares; nothing is mapped yet. `threads` leader first.
  // `status`: the text of /proc.
  Infection(FrozenTree& tree, TracedProcess& process, const std::vector<Vma>& vmas, ReturnPathFinder& return_paths,
            std::string_view status, std::vector<InfectedThread> threads, const std::vector<int32_t>& timer_ids,
            std::vector<StaleParasite> stale, const TwinWish& twin, const ParasiteWish& wish, const Deadline& deadline);
  Infection(const Infection&) = delete;
  Infection& operator=(const Infection&) = delete;
  ~Infection();

  // Of several processes at once, because each stop is a round through the scheduler.
  static void map_all(FrozenTree& tree, const std::vector<Infection*>& infections, const Deadline& deadline);
  void start(const Deadline& deadline);
  // Waits until all threads have answered. The result is the twin's pid in the
  // target's namespace, or a negative errno; 0 where none was wished for.
  // `others_run`: in other processes.
  int32_t await(bool others_run, const Deadline& deadline);
  // Puts all threads back and unmaps.
  // Postconditions: the records are here, nothing of the parasites is there.
  static void take_out_all(FrozenTree& tree, const std::vector<Infection*>& infections, const Deadline& deadline);
  // After await(): what was wished for; an invalid descriptor and the errno where it could not be made.
  sys::Try<UniqueFd> take_uffd() { return std::exchange(uffd_, {UniqueFd(), EBADF}); }
  // Where the parasite is, and in the twin stays.
  uint64_t region_address() const { return region_address_; }

  // After take_out().
  const parasite::ProcessRecord& process_record() const { return process_record_; }
  const std::vector<parasite::TimerRecord>& timers() const { return timers_; }
  const parasite::ThreadRecord& thread_record(size_t index) const { return records_[index]; }

 private:
  uint64_t slot_offset(size_t index) const { return first_slot_offset_ + index * slot_bytes_; }
  void write_region();
  void await_answers(bool others_run, const Deadline& deadline);
  uint32_t state_of(size_t index);
  bool waits_for_us() const;
  bool has_answered(size_t index);
  void answer_offer(bool take);
  void wait_until_nothing_is_offered(const Deadline& deadline);
  void attend_stops(size_t index);
  RemoteCall leader_call(uint64_t number, const std::array<uint64_t, 6>& arguments);
  std::vector<TracedThread*> running_threads() const;
  // `leader_too`: not where a remote call, which leaves it with its context, is next.
  void restore_threads(bool leader_too);
  void put_back(const Deadline& deadline);
  void set_options(bool inside);
  void collect();

  FrozenTree& tree_;
  TracedProcess& process_;
  std::unique_ptr<WayHome> way_home_;  // of the leader
  std::vector<InfectedThread> threads_;
  std::vector<StaleParasite> stale_;  // unmapped on the way out
  TwinWish twin_;
  ParasiteWish wish_;
  sys::Try<UniqueFd> uffd_{UniqueFd(), EBADF};
  bool offer_answered_ = false;
  uint64_t code_bytes_ = 0;
  uint64_t first_slot_offset_ = 0;
  uint64_t slot_bytes_ = 0;
  uint64_t region_bytes_ = 0;
  uint64_t home_ = 0;                 // where to map
  uint64_t region_address_ = 0;       // in the target; 0 while nothing is mapped
  sys::Mapping shared_;               // the same pages here; without privilege for map_files: none
  std::vector<unsigned char> image_;  // the region's content before start, and after, without shared_
  uint64_t used_bytes() const;        // of it, from its start
  bool running_ = false;
  bool left_by_itself_ = false;  // a thread went home before we came back
  bool options_set_ = false;

  parasite::ProcessRecord process_record_{};
  std::vector<parasite::TimerRecord> timers_;
  std::vector<parasite::ThreadRecord> records_;
};

}  // namespace stasis
