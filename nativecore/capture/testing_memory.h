// Memory of our own that plays an address space, for tests of what is written of it.
#pragma once

#include <cstring>
#include <vector>

#include "base/native_error.h"
#include "capture/page_files.h"

namespace stasis::testing {

constexpr uint64_t kBase = 0x10000000;

// It begins at kBase.
class Memory : public PageSource {
 public:
  explicit Memory(uint64_t pages) : bytes_(pages * kPageBytes) {}
  unsigned char* page(uint64_t number) { return bytes_.data() + number * kPageBytes; }
  uint64_t pages() const { return bytes_.size() / kPageBytes; }
  void fill(uint64_t from, uint64_t end) {
    for (uint64_t at = from; at < end; ++at) page(at)[at * 37 % kPageBytes] = static_cast<unsigned char>(at % 255 + 1);
  }
  const unsigned char* read(const PagePiece& piece, unsigned char* buffer) const override {
    unsigned char* to = buffer;
    for (const iovec& window : piece.windows) {
      const uint64_t address = reinterpret_cast<uint64_t>(window.iov_base);
      if (address == fails_at) throw NativeError("task_gone");
      std::memcpy(to, bytes_.data() + (address - kBase), window.iov_len);
      to += window.iov_len;
    }
    return buffer;
  }
  uint64_t fails_at = 0;

 private:
  std::vector<unsigned char> bytes_;
};

}  // namespace stasis::testing
