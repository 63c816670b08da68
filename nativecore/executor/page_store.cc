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
      framed_(names.size()) {
  for (size_t file = 0; file < std::min(names.size(), digests.size()); ++file) {
    if (!is_page_digest(digests[file])) continue;
    digests_[file] = std::make_unique<Digest>();
    digests_[file]->expected = digests[file];
  }
}

void PageStore::open(uint32_t page_file) {
  if (files_[page_file].valid()) return;
  STASIS_CONTEXT("opening a page file");
  const std::string& name = names_[page_file];
  files_[page_file] = open_page_file(images_directory_, name, &sizes_bytes_[page_file]);
}

void PageStore::expect(uint32_t page_file, uint64_t offset_bytes, uint64_t length_bytes) {
  open(page_file);
  const std::string& name = names_[page_file];
  if (codec_of_file(name) != PageCodec::none && !framed_[page_file]) {
    PageDigest* const digest = digests_[page_file] ? &digests_[page_file]->found : nullptr;
    framed_[page_file] = std::make_unique<FramedFile>(files_[page_file].borrow(), name, digest);
  }
  const FramedFile* const framed = framed_[page_file].get();
  const uint64_t size_bytes = framed ? framed->length_bytes() : sizes_bytes_[page_file];
  if (size_bytes < length_bytes || offset_bytes > size_bytes - length_bytes)
    throw NativeError("truncated", "a page file is shorter than the plan says").with_path(name);
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

void PageStore::read(uint32_t page_file, uint64_t offset_bytes, unsigned char* to, uint64_t length_bytes) {
  if (framed_[page_file]) return framed_[page_file]->read(offset_bytes, to, length_bytes);
  // By read(2), not by a mapping: each page of one is entered in page tables, faulted on where those are shadowed, and
  // taken out again, which together cost three times the copy; and a file that is cut short is no SIGBUS.
  const sys::Try<size_t> count = sys::try_pread_all(files_[page_file].borrow(), to, length_bytes, offset_bytes);
  if (!count.ok()) throw NativeError::from_errno("pread", count.error).with_path(names_[page_file]);
  if (count.value < length_bytes)
    throw NativeError("truncated", "a page file has become shorter").with_path(names_[page_file]);
  if (digests_[page_file]) digests_[page_file]->found.add(offset_bytes, to, length_bytes);
}

}  // namespace stasis
