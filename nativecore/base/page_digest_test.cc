// Page digests of what comes in any order, and of what has changed.
#include "base/page_digest.h"

#include <sys/mman.h>
#include <unistd.h>

#include <random>
#include <thread>

#include "base/native_error.h"
#include "base/testing.h"
#include "base/unique_fd.h"

using namespace stasis;
using namespace stasis::testing;

namespace {

std::string some_bytes(size_t length_bytes) {
  std::mt19937_64 random(1);
  std::string bytes(length_bytes, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

UniqueFd file_of(const std::string& bytes) {
  UniqueFd file(::memfd_create("pages", MFD_CLOEXEC));
  if (::write(file.borrow(), bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) throw Failed("write");
  return file;
}

std::string digest_of(const std::string& bytes) {
  return PageDigest().finish(file_of(bytes).borrow(), bytes.size(), 1);
}

const unsigned char* at(const std::string& bytes, size_t offset) {
  return reinterpret_cast<const unsigned char*>(bytes.data()) + offset;
}

// Manifests that have been written say so for ever.
void stays_what_it_is() {
  EXPECT_EQ(digest_of(""), std::string(32, '0'));
  EXPECT_EQ(digest_of("abc"), "06b05ab6733a618578af5f94892f3950");  // XXH3_128bits("abc"), the seed is 0
}

void does_not_care_how_it_is_cut() {
  const std::string bytes = some_bytes(40 * kBlockBytes + 1000);
  const std::string whole = digest_of(bytes);
  const UniqueFd file = file_of(bytes);
  // Cut inside of blocks, as compressed frames are: the rest is read from the file.
  for (const size_t piece : {kBlockBytes, 3 * kBlockBytes, kBlockBytes - 1, 2 * kBlockBytes + 17, bytes.size()}) {
    PageDigest digest;
    const size_t last = (bytes.size() - 1) / piece;
    for (size_t number = last + 1; number-- > 0;) {
      const size_t offset = number * piece;
      digest.add(offset, at(bytes, offset), std::min(piece, bytes.size() - offset));
    }
    digest.add(0, at(bytes, 0), 10 * kBlockBytes);  // once more
    EXPECT_EQ(digest.finish(file.borrow(), bytes.size(), 2), whole);
  }
}

void takes_pieces_from_several_threads() {
  const std::string bytes = some_bytes(1000 * kBlockBytes);
  PageDigest digest;
  {
    std::vector<std::jthread> threads;
    for (size_t first = 0; first < 4; ++first) {
      threads.emplace_back([&, first] {
        // Every block comes twice.
        for (size_t block = first; block < 1000; block += 2)
          digest.add(block * kBlockBytes, at(bytes, block * kBlockBytes), kBlockBytes);
      });
    }
  }
  EXPECT_EQ(digest.finish(-1, bytes.size(), 1), digest_of(bytes));
}

void notices_what_has_changed() {
  const std::string bytes = some_bytes(8 * kBlockBytes + 100);
  const std::string before = digest_of(bytes);
  for (const size_t changed : {size_t{0}, 5 * kBlockBytes - 1, bytes.size() - 1}) {
    std::string other = bytes;
    other[changed] = static_cast<char>(other[changed] ^ 1);
    EXPECT(digest_of(other) != before);
  }
  std::string swapped = bytes;
  swapped.replace(0, kBlockBytes, bytes, kBlockBytes, kBlockBytes);
  swapped.replace(kBlockBytes, kBlockBytes, bytes, 0, kBlockBytes);
  EXPECT(digest_of(swapped) != before);
  EXPECT(digest_of(bytes + std::string(kBlockBytes, '\0')) != before);
}

void tells_of_a_file_that_is_too_short() {
  const UniqueFd file = file_of("abc");
  try {
    PageDigest().finish(file.borrow(), 4, 1);
  } catch (const NativeError& error) {
    EXPECT_EQ(error.reason, "truncated");
    return;
  }
  throw Failed("no exception");
}

}  // namespace

int main(int argc, char** argv) {
  return run_cases({{"stays what it is", stays_what_it_is},
                    {"does not care how it is cut", does_not_care_how_it_is_cut},
                    {"takes pieces from several threads", takes_pieces_from_several_threads},
                    {"notices what has changed", notices_what_has_changed},
                    {"tells of a file that is too short", tells_of_a_file_that_is_too_short}},
                   argc, argv);
}
