// The hash of one block of a page digest (page_digest.h). A header: the addon has it as well.
#pragma once

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/page_digest.h"

namespace stasis {

// Of at most kBlockBytes. The seed is the place: a block that has moved counts as another.
inline BlockSum hash_of_block(uint64_t number, const unsigned char* bytes, uint64_t length_bytes) {
  const XXH128_hash_t hash = XXH3_128bits_withSeed(bytes, length_bytes, number);
  return {hash.low64, hash.high64};
}

}  // namespace stasis
