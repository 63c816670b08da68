// Regular files without a name that the tree has open, mapped or runs: their
// content goes into ghost-file-N.img, once for each file, however many
// descriptors and mappings it has. A fork does not copy it, so of a tree that
// lives on it is copied while the tree stands still.
//
// Undo: images that were created are removed, unless they are kept; files are
// only read, through descriptors of our own, with O_NOATIME.
// If we die here: the target has seen nothing; images without an inventory are
// not a checkpoint.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/progress.h"
#include "base/unique_fd.h"
#include "capture/capture_context.h"
#include "capture/page_file.h"
#include "capture/page_files.h"
#include "capture/shared_memory_copies.h"

namespace stasis {

// The other side of a line of uid_map or gid_map: as the container sees the id. An empty map has all ids.
uint32_t inside_id(const std::string& map, uint32_t id);

class DeletedFilesCapture {
 public:
  // `shared_memory_device`: of files that have no name either, and are another room's.
  DeletedFilesCapture(CaptureContext& context, int images_directory, Progress& progress, uint64_t shared_memory_device);
  DeletedFilesCapture(const DeletedFilesCapture&) = delete;
  DeletedFilesCapture& operator=(const DeletedFilesCapture&) = delete;
  ~DeletedFilesCapture();

  // --- while the tree is stopped

  // Finds the files and their data; fills context.data.deleted_files, of which number i goes into image i + 1.
  // Preconditions: mappings and open files of the tree are known.
  void scan();
  uint64_t bytes_to_save() const;
  // Of a tree that runs on soon: copied, or written if there is no room for that beside twins and `other_bytes` of
  // copies.
  void save(SharedMemoryCopies& copies, uint64_t other_bytes);

  // --- later, or at the end of what is to be done while it is stopped

  // Unless written already.
  void write();
  const std::vector<WrittenPageFile>& written() const { return images_; }
  // The other side has been told of the images and owns them now.
  void keep() { names_.clear(); }

 private:
  struct File;
  struct Image;
  bool is_wanted() const;  // of a pre-dump the content is of no use
  void find_open();
  void find_mapped();
  void find_executables();
  void add(const ProcDir& proc, const std::string& name, bool known_as_deleted);
  std::string head_of(const File& file) const;

  CaptureContext& context_;
  int images_directory_;
  Progress& progress_;
  uint64_t shared_memory_device_;
  std::set<std::pair<uint64_t, uint64_t>> known_;  // device, inode
  std::vector<std::unique_ptr<File>> files_;
  std::vector<std::string> names_;
  std::vector<WrittenPageFile> images_;
  bool is_written_ = false;
};

}  // namespace stasis
