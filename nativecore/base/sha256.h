// SHA-256 (FIPS 180-4) of what comes in pieces, with the processor's own
// instructions where it has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace stasis {

class Sha256 {
 public:
  void update(const void* data, size_t length_bytes);
  // Lower-case hexadecimal. The object must not be used afterwards.
  std::string finish();

 private:
  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  unsigned char rest_[64] = {};
  size_t rest_bytes_ = 0;
  uint64_t total_bytes_ = 0;
};

}  // namespace stasis
