// One page file that is being written, by several threads.
//
// Undo: the caller removes it.
// If we die here: a page file without an inventory is not a checkpoint.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "base/page_digest.h"
#include "base/sys.h"
#include "base/unique_fd.h"

namespace stasis {

// How the bytes get to the disk. The numbers are those of CaptureRequest.page_writing.
enum class PageWriting : uint32_t {
  cached = 0,  // when the kernel likes
  early = 1,   // somebody waits for the disk in the end: it begins at once
  direct = 2,  // past the page cache, which keeps what others have in it; where the file system cannot, as `early`
};

// A page file that is complete.
struct WrittenPageFile {
  std::string name;
  uint64_t size_bytes = 0;
  std::string digest;
  bool direct = false;
};

class PageFile {
 public:
  PageFile(int directory, std::string name, PageWriting how);
  PageFile(const PageFile&) = delete;
  PageFile& operator=(const PageFile&) = delete;

  // Stretches without overlap, in whatever order, which fill the file in the end. Several threads at once.
  void write(uint64_t offset, const unsigned char* bytes, uint64_t length_bytes, pid_t host_pid);
  // Everything is written. `check` as in PageDigest::finish.
  WrittenPageFile finish(uint64_t size_bytes, unsigned workers, const std::function<void()>& check);

 private:
  // Direct writes are of whole blocks, from memory that is aligned like them: what comes in other pieces is put
  // together here, and written when it is full.
  struct Window {
    sys::Mapping bytes;
    uint64_t filled_bytes = 0;
  };
  void write_windows(uint64_t offset, const unsigned char* bytes, uint64_t length_bytes, pid_t host_pid);
  void write_all(uint64_t offset, const unsigned char* bytes, uint64_t length_bytes, pid_t host_pid);
  void write_through_cache() const;
  void begin_write_back(uint64_t offset, uint64_t length_bytes) const;
  sys::Mapping take_buffer();

  std::string name_;
  UniqueFd descriptor_;
  PageDigest digest_;
  bool windows_ = false;              // direct writing was begun with
  std::atomic<bool> direct_ = false;  // and has not been given up
  bool early_;
  std::mutex mutex_;
  std::map<uint64_t, Window> open_windows_;  // by number
  std::vector<sys::Mapping> free_buffers_;
};

}  // namespace stasis
