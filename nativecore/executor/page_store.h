// The page files of a plan, and the bytes in them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/framed_file.h"
#include "base/page_digest.h"
#include "base/sys.h"

namespace stasis {

// Throws unless it is a plain file directly in that directory. `length_bytes`, if wanted, is its size.
UniqueFd open_page_file(int images_directory, const std::string& name, uint64_t* length_bytes = nullptr);

class PageStore {
 public:
  // `images_directory` is borrowed; files are opened in it when they are first asked for.
  // `digests` by number of the page file; what is no page digest is somebody else's to compare.
  PageStore(const std::vector<std::string>& names, int images_directory, const std::vector<std::string>& digests = {});
  PageStore(const PageStore&) = delete;
  PageStore& operator=(const PageStore&) = delete;

  // To be called for every range before it is read. One thread only. Throws "truncated" if the file is shorter.
  void expect(uint32_t page_file, uint64_t offset_bytes, uint64_t length_bytes);

  // Somebody else compares the digest of this file.
  void leave_digest(uint32_t page_file) { digests_[page_file].reset(); }
  // To be called when everything has been copied. Throws "mismatch" for a file that
  // is not the one that was written, whichever part of it was used.
  void compare_digests(const std::function<void()>& check);

  // The bytes of a range that was expected. They count in the digest: hashed here
  // they are in the cache when they are copied. Several threads at once. Throws
  // "truncated", and "corrupt" for compressed pages that are damaged.
  void read(uint32_t page_file, uint64_t offset_bytes, unsigned char* to, uint64_t length_bytes);

 private:
  struct Digest {
    std::string expected;
    PageDigest found;
  };
  void open(uint32_t page_file);

  const std::vector<std::string>& names_;
  int images_directory_;
  std::vector<UniqueFd> files_;
  std::vector<uint64_t> sizes_bytes_;
  std::vector<std::unique_ptr<Digest>> digests_;     // null: there is nothing to compare
  std::vector<std::unique_ptr<FramedFile>> framed_;  // null: plain, or not asked for yet
};

}  // namespace stasis
