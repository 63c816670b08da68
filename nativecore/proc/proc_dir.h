// /proc/PID of one process: texts as the kernel prints them, and the few
// parsers that are needed to find bytes (ranges, numbers). Meaning is read from
// the texts later, in TypeScript.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/sys.h"
#include "base/unique_fd.h"

namespace stasis {

class ProcDir {
 public:
  ProcDir() = default;
  // Throws "task_gone" if there is no such process.
  static ProcDir open(pid_t host_pid);
  static std::optional<ProcDir> try_open(pid_t host_pid);

  pid_t host_pid() const { return host_pid_; }
  int borrow() const { return directory_.borrow(); }

  // Opens a text for all that will read it here: opening and closing are most of what a text costs. Not for texts
  // about memory ("auxv", "maps"): those stay with the memory that the process had when they were opened.
  void keep_open(const std::string& name);
  size_t kept_open() const { return kept_.size(); }

  std::string read(const char* name) const;
  sys::Try<std::string> try_read(const char* name) const;
  // What an unreadable or missing file gives: nothing.
  std::string read_or_empty(const char* name) const { return try_read(name).value; }
  // The text, unless it is longer than that: then nothing, and no more than that has been made by the kernel.
  std::optional<std::string> read_if_short(const char* name, size_t limit_bytes) const;
  std::string readlink(const char* name) const { return sys::readlinkat(directory_.borrow(), name); }
  sys::Try<std::string> try_readlink(const char* name) const { return sys::try_readlinkat(directory_.borrow(), name); }

  // Numeric names in a subdirectory, ascending: "fd", "task". Empty if it has gone.
  std::vector<int32_t> numbers(const char* subdirectory) const;
  // How many threads there are, for a fraction of what their list costs; 0 if the process has gone.
  size_t thread_count() const;
  // Children of all threads, ascending (/proc/PID/task/TID/children).
  std::vector<pid_t> children(const std::vector<pid_t>& host_tids) const;

 private:
  ProcDir(pid_t host_pid, UniqueFd directory) : host_pid_(host_pid), directory_(std::move(directory)) {}
  pid_t host_pid_ = 0;
  UniqueFd directory_;
  std::map<std::string, UniqueFd, std::less<>> kept_;
};

// Of all processes, ascending.
std::vector<pid_t> process_ids();

// A process and its descendants while they run: nearly all of them, parents first.
// Texts that are wanted of each in the freeze window are kept open, as far as that many descriptors reach.
size_t count_tasks(const std::vector<ProcDir>& tree);  // threads of all of them
std::vector<ProcDir> find_running_tree(pid_t root_host_pid, size_t spare_descriptors);

// --- /proc/PID/stat

char stat_state(std::string_view stat);            // 'R', 'Z', ...
uint64_t stat_start_ticks(std::string_view stat);  // field 22
pid_t stat_parent(std::string_view stat);          // field 4
uint64_t stat_start_stack(std::string_view stat);  // field 28
int stat_exit_signal(std::string_view stat);       // field 38
int stat_processor(std::string_view stat);         // field 39: where it runs, or ran last

// --- /proc/PID/status

// The text after "Name:\t", without the line end; empty if there is no such line.
std::string_view status_field(std::string_view status, std::string_view name);
std::vector<int32_t> status_numbers(std::string_view status, std::string_view name);  // "NSpid", decimal
int64_t status_number(std::string_view status, std::string_view name, int64_t missing);

// --- /proc/PID/maps and smaps

struct Vma {
  uint64_t start = 0;
  uint64_t end = 0;
  bool readable = false;
  bool writable = false;
  bool executable = false;
  bool shared = false;
  uint64_t offset = 0;
  uint64_t device = 0;  // major << 20 | minor, as printed
  uint64_t inode = 0;
  std::string name;  // path or "[heap]", as printed (with \012 escapes)
  // VmFlags, from smaps only:
  bool special = false;        // io or pf: no pages to read
  bool not_forked = false;     // dc: a child does not get it
  bool wiped_by_fork = false;  // wf: a child gets it empty; not of droppable memory, which may be empty at any time
};

// "map_files/START-END": the file behind a mapping, below /proc/PID.
std::string map_files_name(uint64_t start, uint64_t end);

// The range lines of a maps or smaps text. Throws "bug" on a text that is not one.
std::vector<Vma> parse_maps(std::string_view text);

// A smaps text without its counts: the range lines, ProtectionKey and VmFlags, as they are. Counts are nine tenths of
// it, and of no use to anybody once the process runs on.
std::string smaps_without_counts(std::string_view smaps);

// Mappings by single questions (PROCMAP_QUERY, Linux 6.11), where a list of all would take too long.
class MappingQuery {
 public:
  // Of the memory that the process has now.
  explicit MappingQuery(const ProcDir& proc);
  // False: the kernel has no such question.
  bool is_supported() const { return supported_; }
  // The first mapping that ends behind the address, `file_backed` or any.
  std::optional<Vma> at_or_after(uint64_t address, bool file_backed) const;

 private:
  UniqueFd maps_;
  bool supported_ = false;
};

// "ID: N" lines of /proc/PID/timers.
std::vector<int32_t> parse_timer_ids(std::string_view timers);

}  // namespace stasis
