// Room for copies of small tasks, and copies in it.
#include "capture/copy_space.h"

#include <sys/mman.h>

#include <atomic>
#include <cstring>

#include "base/page.h"
#include "base/testing_child.h"
#include "capture/page_files.h"

namespace stasis::testing {
namespace {

// A child with this much memory of its own, filled with its pid.
class Child {
 public:
  explicit Child(uint64_t length_bytes)
      : length_bytes_(length_bytes), child_([=](std::atomic<uint64_t>& address) {
          void* const memory =
              ::mmap(nullptr, length_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
          std::memset(memory, ::getpid() & 0xff, length_bytes);
          address = reinterpret_cast<uint64_t>(memory);
        }) {
    await([this] { return child_.shared() != 0; }, "the child has no memory");
  }
  ProcDir proc() const { return ProcDir::open(child_.pid()); }

  void expect_copied_into(CopySpace& space) const {
    const ProcDir proc = this->proc();
    const uint64_t address = child_.shared();
    const std::vector<PageRun> runs{{address, length_bytes_ / kPageBytes}};
    const CopiedMemory copy(LiveMemory(proc), runs, &space);
    const unsigned char* const bytes = copy.find(address, length_bytes_);
    EXPECT(bytes != nullptr);
    for (uint64_t at = 0; at < length_bytes_; ++at) EXPECT_EQ(int{bytes[at]}, child_.pid() & 0xff);
  }

 private:
  uint64_t length_bytes_;
  SharingChild<std::atomic<uint64_t>> child_;
};

std::vector<ProcDir> tree_of(const std::vector<const Child*>& children) {
  std::vector<ProcDir> tree;
  for (const Child* child : children) tree.push_back(child->proc());
  return tree;
}

void gives_room_until_there_is_no_more() {
  const Child one(600 << 10), other(600 << 10);
  CopySpace space;
  space.make_before_freeze(tree_of({&one, &other}));
  unsigned char* last = nullptr;
  uint64_t taken_bytes = 0;
  while (unsigned char* const piece = space.take(256 << 10)) {
    if (last) EXPECT(piece == last + (256 << 10));
    std::memset(piece, 1, 256 << 10);
    last = piece;
    taken_bytes += 256 << 10;
  }
  EXPECT(taken_bytes >= 2 * (600u << 10));
}

void makes_none_for_little_or_for_large_tasks() {
  const Child small(64 << 10), large(4 << 20);
  CopySpace space;
  space.make_before_freeze(tree_of({&small, &large}));
  EXPECT(space.take(kPageBytes) == nullptr);
}

void copies_with_and_without_room() {
  const Child one(600 << 10), other(600 << 10);
  CopySpace with, without;
  with.make_before_freeze(tree_of({&one, &other}));
  one.expect_copied_into(with);
  other.expect_copied_into(with);
  one.expect_copied_into(without);
}

}  // namespace
}  // namespace stasis::testing

int main(int argc, char** argv) {
  using namespace stasis::testing;
  return run_cases(
      {
          {"gives room until there is no more", gives_room_until_there_is_no_more},
          {"makes none for little, or for large tasks", makes_none_for_little_or_for_large_tasks},
          {"copies with and without room", copies_with_and_without_room},
      },
      argc, argv);
}
