// PendingPages against a model that knows each page by itself.
#include <cstdint>
#include <map>
#include <random>
#include <utility>

#include "base/page.h"
#include "base/testing.h"
#include "executor/lazy_memory.h"

using namespace stasis;
using namespace stasis::testing;

namespace {

constexpr uint64_t kPages = 64;

uint64_t address_of(uint64_t page) { return 0x10000000 + page * kPageBytes; }

// Of each page that is missing: where it lies, as page file and offset.
class Model {
 public:
  void add(uint64_t page, uint64_t count, uint32_t file, uint64_t offset_bytes) {
    for (uint64_t at = 0; at < count; ++at) pages_[page + at] = {file, offset_bytes + at * kPageBytes};
  }
  void erase(uint64_t page, uint64_t count) {
    for (uint64_t at = 0; at < count; ++at) pages_.erase(page + at);
  }
  void move(uint64_t from, uint64_t to, uint64_t count) {
    std::map<uint64_t, Place> moved;
    for (uint64_t at = 0; at < count; ++at) {
      if (const auto found = pages_.find(from + at); found != pages_.end()) moved[to + at] = found->second;
    }
    erase(from, count);
    erase(to, count);
    pages_.insert(moved.begin(), moved.end());
  }

  void expect_same(const PendingPages& pending) const {
    EXPECT_EQ(pending.empty(), pages_.empty());
    for (uint64_t page = 0; page < kPages; ++page) {
      const PendingPages::Piece piece = pending.at(address_of(page), kPageBytes);
      const auto found = pages_.find(page);
      EXPECT_EQ(piece.length_bytes, found == pages_.end() ? uint64_t{0} : kPageBytes);
      if (found == pages_.end()) continue;
      EXPECT_EQ(piece.address, address_of(page));
      EXPECT_EQ(piece.page_file, found->second.first);
      EXPECT_EQ(piece.file_offset_bytes, found->second.second);
    }
    if (!pages_.empty()) EXPECT_EQ(pending.first(kPageBytes).address, address_of(pages_.begin()->first));
  }

 private:
  using Place = std::pair<uint32_t, uint64_t>;
  std::map<uint64_t, Place> pages_;
};

void is_what_each_page_by_itself_would_be() {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&random](uint64_t bound) { return random() % bound; };
    PendingPages pending;
    Model model;
    for (int step = 0; step < 60; ++step) {
      const uint64_t count = 1 + below(12), page = below(kPages - count), to = below(kPages - count);
      const uint64_t length_bytes = count * kPageBytes;
      switch (below(3)) {
        case 0: {
          const auto file = static_cast<uint32_t>(below(3));
          const uint64_t offset_bytes = below(1000) * kPageBytes;
          pending.add(address_of(page), length_bytes, file, offset_bytes);
          model.add(page, count, file, offset_bytes);
          break;
        }
        case 1:
          pending.erase(address_of(page), length_bytes);
          model.erase(page, count);
          break;
        default:
          // mremap(2) refuses places that overlap.
          if (page < to + count && to < page + count) break;
          pending.move(address_of(page), address_of(to), length_bytes);
          model.move(page, to, count);
      }
      model.expect_same(pending);
    }
  }
}

void gives_at_most_what_is_asked_for_and_not_beyond_a_run() {
  PendingPages pending;
  pending.add(address_of(0), 4 * kPageBytes, 1, 0);
  pending.add(address_of(4), 2 * kPageBytes, 2, 0);
  EXPECT_EQ(pending.at(address_of(1), 2 * kPageBytes).length_bytes, 2 * kPageBytes);
  EXPECT_EQ(pending.at(address_of(1), 100 * kPageBytes).length_bytes, 3 * kPageBytes);
  EXPECT_EQ(pending.at(address_of(1), kPageBytes).file_offset_bytes, kPageBytes);
  EXPECT_EQ(pending.at(address_of(6), kPageBytes).length_bytes, 0u);
  EXPECT_EQ(pending.first(100 * kPageBytes).length_bytes, 4 * kPageBytes);
}

}  // namespace

int main(int argc, char** argv) {
  return run_cases(
      {{"is what each page by itself would be", is_what_each_page_by_itself_would_be},
       {"gives at most what is asked for, and not beyond a run", gives_at_most_what_is_asked_for_and_not_beyond_a_run}},
      argc, argv);
}
