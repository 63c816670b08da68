#include "executor/page_store.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/native_error.h"
#include "base/page.h"
#include "base/parallel.h"

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

PageStore::PageStore(const std::vector<std::string>& names, int images_directory,
                     const std::vector<std::string>& digests)
    : names_(names),
      images_directory_(images_directory),
      files_(names.size()),
      sizes_bytes_(names.size()),
      digests_(names.size()),
      mappings_(names.size()),
      compressed_(names.size()) {
  for (size_t file = 0; file < std::min(names.size(), digests.size()); ++file) {
    if (!is_page_digest(digests[file])) continue;
    digests_[file] = std::make_unique<Digest>();
    digests_[file]->expected = digests[file];
  }
}

void PageStore::open(uint32_t page_file) {
  if (!files_[page_file].valid())
    files_[page_file] = open_page_file(images_directory_, names_[page_file], &sizes_bytes_[page_file]);
}

void PageStore::map(uint32_t page_file) {
  STASIS_CONTEXT("mapping a page file");
  const std::string& name = names_[page_file];
  open(page_file);
  if (codec_of_file(name) != PageCodec::none) {
    PageDigest* const digest = digests_[page_file] ? &digests_[page_file]->found : nullptr;
    compressed_[page_file] = std::make_unique<CompressedPages>(files_[page_file].borrow(), name, digest);
  } else if (sizes_bytes_[page_file] > 0) {
    mappings_[page_file] = sys::mmap(0, sizes_bytes_[page_file], PROT_READ, MAP_PRIVATE, files_[page_file].borrow());
  }
}

void PageStore::compare_digests(const std::function<void()>& check) {
  STASIS_CONTEXT("comparing the digests of page files");
  for (uint32_t file = 0; file < names_.size(); ++file) {
    if (!digests_[file]) continue;
    open(file);
    Digest& digest = *digests_[file];
    if (digest.found.finish(files_[file].borrow(), sizes_bytes_[file], kMaximalWorkers, check) != digest.expected)
      throw NativeError("mismatch", not_as_written(names_[file])).with_path(names_[file]);
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
  if (store.digests_[page_file]) {
    const auto offset = static_cast<uint64_t>(bytes - store.mappings_[page_file].data());
    store.digests_[page_file]->found.add(offset, bytes, length_bytes);
  }
}

PageStore::Present::~Present() {
  if (pages_) pages_->release(offset_bytes_, length_bytes_);
}

}  // namespace stasis
