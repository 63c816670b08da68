// The page files of a plan, and the bytes in them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/sys.h"

namespace stasis {

class PageStore {
 public:
  // `images_directory` is borrowed; files are opened in it when they are first asked for.
  PageStore(const std::vector<std::string>& names, int images_directory)
      : names_(names), images_directory_(images_directory), mappings_(names.size()) {}
  PageStore(const PageStore&) = delete;
  PageStore& operator=(const PageStore&) = delete;

  // Mapped from the file and readable while the store lives. Throws "truncated"
  // if the file is shorter.
  const unsigned char* bytes(uint32_t page_file, uint64_t offset_bytes, uint64_t length_bytes);

  // Reads a range in advance: one call instead of a fault per 16 pages.
  static void make_present(const unsigned char* bytes, uint64_t length_bytes);

 private:
  void map(uint32_t page_file);

  const std::vector<std::string>& names_;
  int images_directory_;
  std::vector<sys::Mapping> mappings_;  // invalid: not asked for yet, or empty
};

}  // namespace stasis
