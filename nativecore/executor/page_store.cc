#include "executor/page_store.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "base/native_error.h"
#include "base/page.h"

namespace stasis {
namespace {

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

}  // namespace

UniqueFd open_page_file(int images_directory, const std::string& name, uint64_t* length_bytes) {
  UniqueFd file = sys::openat(images_directory, name.c_str(), O_RDONLY | O_NOFOLLOW);
  struct stat status;
  if (::fstat(file.borrow(), &status) < 0) throw NativeError::from_errno("fstat", errno).with_path(name);
  if (!S_ISREG(status.st_mode)) throw NativeError("bad_request", "a page file is not a plain file").with_path(name);
  if (length_bytes) *length_bytes = static_cast<uint64_t>(status.st_size);
  return file;
}

void PageStore::map(uint32_t page_file) {
  STASIS_CONTEXT("mapping a page file");
  const std::string& name = names_[page_file];
  uint64_t length_bytes = 0;
  UniqueFd file = open_page_file(images_directory_, name, &length_bytes);
  if (codec_of_file(name) != PageCodec::none) {
    compressed_[page_file] = std::make_unique<CompressedPages>(std::move(file), name);
  } else if (length_bytes > 0) {
    mappings_[page_file] = sys::mmap(0, length_bytes, PROT_READ, MAP_PRIVATE, file.borrow());
  }
}

const unsigned char* PageStore::bytes(uint32_t page_file, uint64_t offset_bytes, uint64_t length_bytes) {
  if (!mappings_[page_file].valid() && !compressed_[page_file]) map(page_file);
  const CompressedPages* const compressed = compressed_[page_file].get();
  const sys::Mapping& mapping = mappings_[page_file];
  const uint64_t size = compressed ? compressed->length_bytes() : mapping.valid() ? mapping.length_bytes() : 0;
  if (size < length_bytes || offset_bytes > size - length_bytes)
    throw NativeError("truncated", "a page file is shorter than the plan says").with_path(names_[page_file]);
  return (compressed ? compressed->data() : mapping.data()) + offset_bytes;
}

PageStore::Present::Present(PageStore& store, uint32_t page_file, const unsigned char* bytes, uint64_t length_bytes)
    : pages_(store.compressed_[page_file].get()), length_bytes_(length_bytes) {
  if (pages_) {
    offset_bytes_ = static_cast<uint64_t>(bytes - pages_->data());
    pages_->hold(offset_bytes_, length_bytes);
    return;
  }
  const uint64_t first = reinterpret_cast<uint64_t>(bytes) / kPageBytes * kPageBytes;
  const uint64_t end = reinterpret_cast<uint64_t>(bytes) + length_bytes;
  // Kernels before 5.14 lack it, and the reads fault one by one.
  (void)::madvise(reinterpret_cast<void*>(first), end - first, MADV_POPULATE_READ);
}

PageStore::Present::~Present() {
  if (pages_) pages_->release(offset_bytes_, length_bytes_);
}

}  // namespace stasis
