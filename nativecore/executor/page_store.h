// The page files of a plan, and the bytes in them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/page_digest.h"
#include "base/sys.h"
#include "executor/compressed_pages.h"

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

  // Where the bytes are while the store lives; of a compressed file, while a Present
  // holds them. One thread only. Throws "truncated" if the file is shorter.
  const unsigned char* bytes(uint32_t page_file, uint64_t offset_bytes, uint64_t length_bytes);

  // Somebody else compares the digest of this file.
  void leave_digest(uint32_t page_file) { digests_[page_file].reset(); }
  // To be called when everything has been copied. Throws "mismatch" for a file that
  // is not the one that was written, whichever part of it was used.
  void compare_digests(const std::function<void()>& check);

  // Holds a range that bytes() has given. Of a plain file it is read in advance,
  // one call instead of a fault per 16 pages; of a compressed one it is decoded. It
  // counts in the digest: hashed here it is in the cache when it is copied.
  // Several threads at once.
  class Present {
   public:
    Present(PageStore& store, uint32_t page_file, const unsigned char* bytes, uint64_t length_bytes);
    ~Present();
    Present(const Present&) = delete;
    Present& operator=(const Present&) = delete;

   private:
    CompressedPages* pages_;
    uint64_t offset_bytes_ = 0;
    uint64_t length_bytes_;
  };

 private:
  struct Digest {
    std::string expected;
    PageDigest found;
  };
  void open(uint32_t page_file);
  void map(uint32_t page_file);

  const std::vector<std::string>& names_;
  int images_directory_;
  std::vector<UniqueFd> files_;
  std::vector<uint64_t> sizes_bytes_;
  std::vector<std::unique_ptr<Digest>> digests_;  // null: there is nothing to compare
  // Neither: not asked for yet, or empty.
  std::vector<sys::Mapping> mappings_;
  std::vector<std::unique_ptr<CompressedPages>> compressed_;
};

}  // namespace stasis
