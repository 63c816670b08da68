// What is left to do of a lazy restore when its tasks have been released: which
// pages of which address space are in which page file, and where the page
// process and its guardian begin.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/framed_file.h"
#include "base/unique_fd.h"

namespace stasis {

// The pages of one address space that may still be missing, by address.
class PendingPages {
 public:
  struct Run {
    uint64_t end;
    uint32_t page_file;
    uint64_t file_offset_bytes;  // of the first page
  };

  bool empty() const { return runs_.empty(); }
  void add(uint64_t address, uint64_t length_bytes, uint32_t page_file, uint64_t file_offset_bytes);
  // What is there from `address` on, cut to the run that holds it; nothing: length 0.
  struct Piece {
    uint64_t address = 0;
    uint64_t length_bytes = 0;
    uint32_t page_file = 0;
    uint64_t file_offset_bytes = 0;
  };
  Piece at(uint64_t address, uint64_t at_most_bytes) const;
  Piece first(uint64_t at_most_bytes) const;
  void erase(uint64_t address, uint64_t length_bytes);
  // As mremap(2) does it: what was at the destination is gone.
  void move(uint64_t from, uint64_t to, uint64_t length_bytes);

 private:
  void split(uint64_t address);
  std::map<uint64_t, Run> runs_;
};

struct LazySpace {
  UniqueFd uffd;  // registered, non-blocking, with events
  PendingPages pending;
};

struct LazyFile {
  UniqueFd file;
  std::string name;
  std::string digest;                  // page digest or sha256; "": there is nothing to compare with
  uint64_t length_bytes = 0;           // of its content, when it was opened
  std::unique_ptr<FramedFile> framed;  // of a compressed one
};

struct LazyMemory {
  std::vector<LazySpace> spaces;
  std::vector<LazyFile> files;  // by number of the page file
};

// The two processes behind a lazy restore. The page process answers faults and
// fills; the guardian does nothing but hold the same descriptors and wait: a
// userfaultfd that nobody holds any more gives zero pages, so the table is
// shared (CLONE_FILES), and when the page process ends without having done all
// of it, the guardian ends the container before it lets go.
//
// If we die here: before commit() the page process sees end of file, and the
// guardian ends the tasks as the janitor does.
class LazyPages {
 public:
  // Preconditions: this process has one thread; the task behind `root_pidfd` is
  // the init of a pid namespace, so that its end is the end of all.
  LazyPages(LazyMemory memory, int root_pidfd);
  LazyPages(const LazyPages&) = delete;
  // Unless committed: the tasks are ended if they live, and the processes reaped.
  ~LazyPages();

  // Throws "pages_gone" if they cannot go on.
  void check_alive() const;
  // The tasks run: fill in the background, too. Throws "pages_gone".
  void commit();
  pid_t host_pid() const { return host_pid_; }

 private:
  UniqueFd socket_;
  pid_t host_pid_ = -1;
  bool committed_ = false;
};

}  // namespace stasis
