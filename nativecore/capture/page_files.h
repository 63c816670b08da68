// Page contents on their way into pages-N.img.
//
// Undo: PageFiles removes the files that were created, unless they are kept.
// If we die here: the target has seen nothing; page files without an inventory
// are not a checkpoint.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/page_codec.h"
#include "base/progress.h"
#include "base/sys.h"
#include "base/unique_fd.h"
#include "capture/copy_space.h"
#include "capture/page_file.h"
#include "capture/page_runs.h"
#include "proc/proc_dir.h"

namespace stasis {

// A stretch of a page file and the ranges of the address space that fill it.
struct PagePiece {
  uint64_t file_offset = 0;
  uint64_t length_bytes = 0;
  std::vector<iovec> windows;  // addresses in the target
};

// One process_vm_readv and one pwrite each: large enough that their cost
// vanishes, small enough to stay in the cache between the two.
constexpr uint64_t kPieceBytes = 1 << 20;

std::vector<PagePiece> cut_into_pieces(const std::vector<PageRun>& runs, uint64_t piece_bytes = kPieceBytes);

// Where the bytes of an address space come from. Used by several threads at once.
class PageSource {
 public:
  virtual ~PageSource() = default;
  // The bytes of all windows of the piece, one after the other: in `buffer`, or
  // in memory of the source's own, which lives as long as the source.
  virtual const unsigned char* read(const PagePiece& piece, unsigned char* buffer) const = 0;
};

// The memory of a process that stands still.
class LiveMemory : public PageSource {
 public:
  // Pages that another address space holds as well, as a twin's are, are made the
  // reader's own first when process_vm_readv(2) pins them: measured for 512 MiB,
  // 430 ms, and 190 through /proc/PID/mem. Of pages that are nobody else's: 110 and 160.
  enum class Pages { own, shared };
  explicit LiveMemory(const ProcDir& proc, Pages pages = Pages::own);
  const unsigned char* read(const PagePiece& piece, unsigned char* buffer) const override;

 private:
  pid_t host_pid_;
  Pages pages_;
  UniqueFd memory_;  // /proc/PID/mem
};

// Pages that were copied here, in the order of their runs.
class CopiedMemory : public PageSource {
 public:
  // In the space, if there is one that has room for it.
  CopiedMemory(const PageSource& source, const std::vector<PageRun>& runs, CopySpace* space = nullptr);
  const unsigned char* read(const PagePiece& piece, unsigned char* buffer) const override;
  // The bytes of a range of pages; null if it is not among the runs.
  const unsigned char* find(uint64_t address, uint64_t length_bytes) const;

 private:
  std::vector<PageRun> runs_;
  sys::Mapping own_;
  unsigned char* bytes_ = nullptr;
};

// A twin's memory, but for what a fork does not copy.
class TwinMemory : public PageSource {
 public:
  // `not_forked` may be null; it must know every run that the twin's memory lacks.
  TwinMemory(const ProcDir& twin, const CopiedMemory* not_forked)
      : twin_(twin, LiveMemory::Pages::shared), not_forked_(not_forked) {}
  const unsigned char* read(const PagePiece& piece, unsigned char* buffer) const override;

 private:
  LiveMemory twin_;
  const CopiedMemory* not_forked_;
};

class ParentPages;

// The page files of one capture: removed at the end of the scope unless kept.
class PageFiles {
 public:
  // What goes into one file.
  struct Content {
    int32_t host_pid = 0;  // for errors; 0: a memory object's
    uint32_t pages_id = 0;
    std::vector<PageRun> runs;
    const PageSource* source = nullptr;
    // Ranges in which an absent page would not read as zeroes, but as what a file
    // holds: pages of zeroes are written there. Ascending.
    std::vector<PageRun> backed;
    // Compared with, if there is no hurry; null: there is none, or note was kept of what changed.
    const ParentPages* parent = nullptr;
    std::vector<PageRun> equal = {};  // what was left to it
    uint64_t compared_pages = 0;
  };

  PageFiles(int images_directory, Progress& progress, PageCodec codec = PageCodec::none, int level = 0,
            PageWriting writing = PageWriting::cached)
      : images_directory_(images_directory), progress_(progress), codec_(codec), level_(level), writing_(writing) {}
  PageFiles(const PageFiles&) = delete;
  PageFiles& operator=(const PageFiles&) = delete;
  ~PageFiles();
  // Somebody waits for it, or nobody does: what takes longer is left out, or done.
  enum class Hurry { yes, no };

  // Compressed, if that was asked for and there is no hurry: "pages-1.img.lz4". What is written in a hurry goes
  // through the page cache.
  // `check_abort` is called by the calling thread now and then, and may throw.
  // Gives the number of pages that were left out because they are zeroes.
  // Preconditions: no file of these names exists that matters.
  // Postconditions: `runs` of each is what lies in its file, `equal` what was left to the parent.
  uint64_t write(std::vector<Content>& contents, Hurry hurry, const std::function<void()>& check_abort);
  const std::vector<WrittenPageFile>& written() const { return written_; }
  // The other side has been told of them and owns them now.
  void keep() { names_.clear(); }

 private:
  int images_directory_;
  Progress& progress_;
  PageCodec codec_;
  int level_;
  PageWriting writing_;
  std::vector<std::string> names_;
  std::vector<WrittenPageFile> written_;
};

}  // namespace stasis
