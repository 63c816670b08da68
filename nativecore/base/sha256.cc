#include "base/sha256.h"

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>

namespace stasis {
namespace {

constexpr size_t kBlockBytes = 64;

alignas(16) constexpr uint32_t kRoundConstants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

void add_blocks_plainly(uint32_t* state, const unsigned char* data, size_t count) {
  for (; count > 0; --count, data += kBlockBytes) {
    uint32_t w[64];
    for (int i = 0; i < 16; ++i) {
      uint32_t word;
      std::memcpy(&word, data + 4 * i, 4);
      w[i] = __builtin_bswap32(word);
    }
    for (int i = 16; i < 64; ++i) {
      const uint32_t s0 = std::rotr(w[i - 15], 7) ^ std::rotr(w[i - 15], 18) ^ (w[i - 15] >> 3);
      const uint32_t s1 = std::rotr(w[i - 2], 17) ^ std::rotr(w[i - 2], 19) ^ (w[i - 2] >> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t v[8];
    std::copy_n(state, 8, v);
    for (int i = 0; i < 64; ++i) {
      const uint32_t s1 = std::rotr(v[4], 6) ^ std::rotr(v[4], 11) ^ std::rotr(v[4], 25);
      const uint32_t choice = (v[4] & v[5]) ^ (~v[4] & v[6]);
      const uint32_t one = v[7] + s1 + choice + kRoundConstants[i] + w[i];
      const uint32_t s0 = std::rotr(v[0], 2) ^ std::rotr(v[0], 13) ^ std::rotr(v[0], 22);
      const uint32_t majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
      std::copy_backward(v, v + 7, v + 8);
      v[4] += one;
      v[0] = one + s0 + majority;
    }
    for (int i = 0; i < 8; ++i) state[i] += v[i];
  }
}

// The instructions want the state as two vectors, a b e f and c d g h, and do
// four rounds with four words of the schedule.
__attribute__((target("sha,sse4.1,ssse3"))) void add_blocks_with_instructions(uint32_t* state,
                                                                              const unsigned char* data, size_t count) {
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  auto set = [](uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    return _mm_set_epi32(static_cast<int>(a), static_cast<int>(b), static_cast<int>(c), static_cast<int>(d));
  };
  __m128i abef = set(state[0], state[1], state[4], state[5]);
  __m128i cdgh = set(state[2], state[3], state[6], state[7]);
  for (; count > 0; --count, data += kBlockBytes) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[4];
    for (int i = 0; i < 4; ++i)
      w[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data) + i), big_endian);
    for (int i = 0; i < 16; ++i) {
      const __m128i constants = _mm_load_si128(reinterpret_cast<const __m128i*>(kRoundConstants) + i);
      const __m128i sum = _mm_add_epi32(w[i % 4], constants);
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
      if (i >= 12) continue;
      const __m128i last = w[(i + 3) % 4];
      const __m128i middle = _mm_alignr_epi8(last, w[(i + 2) % 4], 4);
      w[i % 4] = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(w[i % 4], w[(i + 1) % 4]), middle), last);
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  alignas(16) uint32_t feba[4], hgdc[4];
  _mm_store_si128(reinterpret_cast<__m128i*>(feba), abef);
  _mm_store_si128(reinterpret_cast<__m128i*>(hgdc), cdgh);
  const uint32_t after[8] = {feba[3], feba[2], hgdc[3], hgdc[2], feba[1], feba[0], hgdc[1], hgdc[0]};
  std::copy_n(after, 8, state);
}

// CPUID leaf 7: the bit that __builtin_cpu_supports has no name for in older compilers.
bool has_instructions() {
  uint32_t a = 7, b = 0, c = 0, d = 0;
  asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return (b & (1u << 29)) != 0 && __builtin_cpu_supports("sse4.1");
}

void add_blocks(uint32_t* state, const unsigned char* data, size_t count) {
  static const bool instructions = has_instructions();
  if (instructions) {
    add_blocks_with_instructions(state, data, count);
  } else {
    add_blocks_plainly(state, data, count);
  }
}

}  // namespace

void Sha256::update(const void* data, size_t length_bytes) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  total_bytes_ += length_bytes;
  if (rest_bytes_ > 0) {
    const size_t taken = std::min(length_bytes, kBlockBytes - rest_bytes_);
    std::copy_n(bytes, taken, rest_ + rest_bytes_);
    rest_bytes_ += taken;
    bytes += taken;
    length_bytes -= taken;
    if (rest_bytes_ < kBlockBytes) return;
    add_blocks(state_, rest_, 1);
    rest_bytes_ = 0;
  }
  add_blocks(state_, bytes, length_bytes / kBlockBytes);
  rest_bytes_ = length_bytes % kBlockBytes;
  std::copy_n(bytes + length_bytes - rest_bytes_, rest_bytes_, rest_);
}

std::string Sha256::finish() {
  const uint64_t total_bits = __builtin_bswap64(total_bytes_ * 8);
  static constexpr unsigned char kPadding[kBlockBytes] = {0x80};
  update(kPadding, 1 + (kBlockBytes + 55 - rest_bytes_) % kBlockBytes);
  update(&total_bits, sizeof total_bits);
  std::string hexadecimal;
  for (const uint32_t word : state_) {
    for (int shift = 28; shift >= 0; shift -= 4) hexadecimal += "0123456789abcdef"[(word >> shift) & 15];
  }
  return hexadecimal;
}

}  // namespace stasis
