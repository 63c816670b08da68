// Copy on write: what a program with much memory sees of a capture, what the
// page files hold, and what is left of the twin.
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "base/page.h"
#include "base/testing_child.h"
#include "capture/capture_steps.h"
#include "capture/testing_core.h"
#include "proc/proc_dir.h"

namespace stasis::testing {
namespace {

constexpr uint64_t kAllMemory = UINT64_MAX;

// A program whose memory obeys a rule at every moment: words `first` and `last`
// of each block are written by one thread, first before last. In a picture of
// one moment, blocks before the current one hold the round in both words, blocks
// behind it the round before.
class Writer {
 public:
  static constexpr uint64_t kBlockBytes = 64 << 10;

  struct Shared {
    std::atomic<uint64_t> round;
    std::atomic<int> failures;
    std::atomic<int> children_seen;
    uint64_t blocks_address;
    uint64_t special_address;
    uint64_t child_pid;
  };

  Writer(uint64_t length_bytes, int special_advice)
      : blocks_(length_bytes / kBlockBytes),
        child_([=](Shared& shared) { run(shared, length_bytes, special_advice); }) {
    await_round(2);
  }

  pid_t pid() const { return child_.pid(); }
  uint64_t blocks() const { return blocks_; }
  uint64_t blocks_address() const { return child_.shared().blocks_address; }
  uint64_t special_address() const { return child_.shared().special_address; }
  void expect_alive() {
    await_round(child_.shared().round + 2);
    EXPECT_EQ(child_.shared().failures.load(), 0);
    EXPECT_EQ(child_.shared().children_seen.load(), 0);
  }

 private:
  void await_round(uint64_t round) {
    await([&] { return child_.shared().round >= round; }, "the writer does not go on");
  }

  [[noreturn]] static void run(Shared& shared, uint64_t length_bytes, int special_advice) {
    // It has no children, so every child that it sees is a mistake of ours.
    ::signal(SIGCHLD, [](int) { ++seen_->children_seen; });
    seen_ = &shared;
    auto* memory = static_cast<unsigned char*>(
        ::mmap(nullptr, length_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    auto* special = static_cast<unsigned char*>(
        ::mmap(nullptr, 16 * kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (uint64_t page = 0; page < 16; ++page) special[page * kPageBytes] = static_cast<unsigned char>(0xa0 + page);
    if (special_advice) ::madvise(special, 16 * kPageBytes, special_advice);
    shared.blocks_address = reinterpret_cast<uint64_t>(memory);
    shared.special_address = reinterpret_cast<uint64_t>(special);
    for (uint64_t round = 1;; ++round) {
      for (uint64_t at = 0; at < length_bytes; at += kBlockBytes) {
        auto* first = reinterpret_cast<volatile uint64_t*>(memory + at);
        auto* last = reinterpret_cast<volatile uint64_t*>(memory + at + kBlockBytes - 8);
        if (*first != round - 1 || *last != round - 1) ++shared.failures;
        *first = round;
        *last = round;
      }
      if (special[5 * kPageBytes] != 0xa5) ++shared.failures;
      int status = 0;
      if (::waitpid(-1, &status, WNOHANG) != -1 || errno != ECHILD) ++shared.children_seen;
      shared.round = round;
    }
  }

  static inline Shared* seen_ = nullptr;
  uint64_t blocks_;
  SharingChild<Shared> child_;
};

// A program with very many mappings that maps shared memory all the time, each piece at an address of its own.
class Mapper {
 public:
  static constexpr uint64_t kStamp = 0x736861726564ull << 16;  // and how many there were before, in 16 bits

  Mapper() {
    shared_ = static_cast<Shared*>(
        ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      run();
    }
    await_round(2);
  }
  ~Mapper() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::munmap(shared_, sizeof(Shared));
  }
  Mapper(const Mapper&) = delete;
  Mapper& operator=(const Mapper&) = delete;
  pid_t pid() const { return pid_; }
  void expect_alive() {
    await_round(shared_->round + 2);
    EXPECT_EQ(shared_->failures.load(), 0);
  }

 private:
  struct Shared {
    std::atomic<uint64_t> round;
    std::atomic<int> failures;
  };

  void await_round(uint64_t round) const {
    const Deadline deadline = Deadline::in_ms(20'000);
    while (shared_->round < round) {
      if (deadline.expired()) throw Failed("the mapper does not go on");
      ::sched_yield();
    }
  }

  [[noreturn]] void run() {
    constexpr uint64_t kMappings = 4000;
    constexpr uint64_t kPlaces = 1 << 16;
    auto* many = static_cast<unsigned char*>(
        ::mmap(nullptr, kMappings * kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (uint64_t page = 0; page < kMappings; page += 2)
      if (::mprotect(many + page * kPageBytes, kPageBytes, PROT_READ) < 0) ++shared_->failures;
    auto* places = static_cast<unsigned char*>(
        ::mmap(nullptr, kPlaces * 2 * kPageBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    ::munmap(places, kPlaces * 2 * kPageBytes);
    void* before = nullptr;
    for (uint64_t round = 1;; ++round) {
      void* const piece = ::mmap(places + round % kPlaces * 2 * kPageBytes, kPageBytes, PROT_READ | PROT_WRITE,
                                 MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
      if (piece == MAP_FAILED) ::_exit(1);
      *static_cast<uint64_t*>(piece) = kStamp + round % kPlaces;
      if (before) ::munmap(before, kPageBytes);
      before = piece;
      shared_->round = round;
    }
  }

  Shared* shared_ = nullptr;
  pid_t pid_ = -1;
};

class PageImage {
 public:
  PageImage(const std::string& directory, const std::string& page_map) {
    std::ifstream file(directory + "/pages-1.img", std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
    protozero::pbf_reader message(page_map);
    while (message.next(1)) {
      protozero::pbf_reader task = message.get_message();
      while (task.next(3)) {
        uint64_t address = 0, pages = 0;
        protozero::pbf_reader run = task.get_message();
        while (run.next()) {
          if (run.tag() == 1) {
            address = run.get_uint64();
          } else if (run.tag() == 2) {
            pages = run.get_uint64();
          } else {
            run.skip();
          }
        }
        runs_.push_back({address, pages});
      }
    }
  }
  template <typename Value>
  Value at(uint64_t address) const {
    uint64_t offset = 0;
    for (const auto& [start, pages] : runs_) {
      if (address >= start && address + sizeof(Value) <= start + pages * kPageBytes) {
        Value value;
        std::memcpy(&value, bytes_.data() + offset + (address - start), sizeof value);
        return value;
      }
      offset += pages * kPageBytes;
    }
    throw Failed("the image lacks an address that was written");
  }

 private:
  std::string bytes_;
  std::vector<std::pair<uint64_t, uint64_t>> runs_;
};

// One moment: a prefix of the blocks is in round r, the rest in round r - 1, and
// at most one block is between its two words.
void expect_one_moment(const PageImage& image, const Writer& writer) {
  const uint64_t newest = image.at<uint64_t>(writer.blocks_address());
  bool older = false;
  for (uint64_t block = 0; block < writer.blocks(); ++block) {
    const uint64_t start = writer.blocks_address() + block * Writer::kBlockBytes;
    const uint64_t first = image.at<uint64_t>(start);
    const uint64_t last = image.at<uint64_t>(start + Writer::kBlockBytes - 8);
    if (!older && (first != newest || last != newest)) {
      older = true;
      EXPECT(first == newest || first == newest - 1);
      EXPECT_EQ(last, newest - 1);
    } else if (older) {
      EXPECT_EQ(first, newest - 1);
      EXPECT_EQ(last, newest - 1);
    }
  }
  for (uint64_t page = 0; page < 16; ++page)
    EXPECT_EQ(static_cast<int>(image.at<unsigned char>(writer.special_address() + page * kPageBytes)),
              static_cast<int>(0xa0 + page));
}

void expect_no_children(pid_t pid) {
  const ProcDir proc = ProcDir::open(pid);
  const Deadline deadline = Deadline::in_ms(10'000);
  while (!proc.children(proc.numbers("task")).empty()) {
    if (deadline.expired()) throw Failed("a twin is left in the list of children");
    ::sched_yield();
  }
}

template <typename Program>
std::string capture(const ImagesDirectory& images, const Program& program, uint64_t copy_on_write_bytes,
                    std::string* captured = nullptr) {
  Core core(images.path());
  core.request_capture(program.pid(), true, true, copy_on_write_bytes);
  const std::string capture = core.expect(FromCoreKind::captured);
  if (captured) *captured = capture;
  const std::string page_map = core.expect(FromCoreKind::pages_written);
  core.expect(FromCoreKind::thawed);
  EXPECT_EQ(core.wait(), 0);
  return page_map;
}

void holds_one_moment_of_memory_that_is_being_written() {
  const ImagesDirectory images;
  Writer writer(64 << 20, 0);
  for (int round = 0; round < 10; ++round) {
    expect_one_moment(PageImage(images.path(), capture(images, writer, kAllMemory)), writer);
    expect_no_children(writer.pid());
    writer.expect_alive();
  }
}

void holds_memory_that_a_fork_leaves_out() {
  for (const int advice : {MADV_DONTFORK, MADV_WIPEONFORK}) {
    const ImagesDirectory images;
    Writer writer(16 << 20, advice);
    expect_one_moment(PageImage(images.path(), capture(images, writer, kAllMemory)), writer);
    expect_no_children(writer.pid());
    writer.expect_alive();
  }
}

// How many pages of the images begin with a stamp of the mapper's.
int count_stamps(const ImagesDirectory& images) {
  int stamps = 0;
  for (const auto& entry : std::filesystem::directory_iterator(images.path())) {
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string bytes(std::istreambuf_iterator<char>(file), {});
    for (size_t at = 0; at + kPageBytes <= bytes.size(); at += kPageBytes) {
      uint64_t word = 0;
      std::memcpy(&word, bytes.data() + at, sizeof word);
      stamps += word >> 16 == Mapper::kStamp >> 16;
    }
  }
  return stamps;
}

void holds_shared_memory_that_was_mapped_just_before() {
  Mapper mapper;
  bool missed = false;  // on a busy machine it may stand still from the look before the freeze to the freeze
  for (int round = 0; round < 5 || (!missed && round < 40); ++round) {
    const ImagesDirectory images;
    std::string captured;
    capture(images, mapper, kAllMemory, &captured);
    missed |= captured.find("had mapped shared memory that was not looked for") != std::string::npos;
    // Between a new piece and the end of the one before there are two, and one may not have been written yet.
    const int stamps = count_stamps(images);
    EXPECT(stamps == 1 || stamps == 2);
    expect_no_children(mapper.pid());
    mapper.expect_alive();
  }
  EXPECT(missed);
}

void copies_while_the_tree_stands_still_where_memory_is_short() {
  const ImagesDirectory images;
  Writer writer(64 << 20, 0);
  std::string captured;
  expect_one_moment(PageImage(images.path(), capture(images, writer, 1 << 20, &captured)), writer);
  EXPECT(captured.find("copied while the processes stood still") != std::string::npos);
  writer.expect_alive();
}

void target_survives_the_death_of_the_core_at_every_step() {
  const ImagesDirectory images;
  for (size_t step = 1; step <= kCaptureSteps.size(); ++step) {
    const std::string name = kCaptureSteps[step - 1].name;
    if (name == "killed" || name == "kill" || name == "hold" || is_tracking_step(name) || is_connection_step(name))
      continue;
    Writer writer(16 << 20, 0);
    Core core(images.path(), std::to_string(step).c_str());
    core.request_capture(writer.pid(), true, true, kAllMemory);
    const int status = core.wait();
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) throw Failed("step " + name + " was not reached");
    try {
      writer.expect_alive();
      expect_no_children(writer.pid());
      writer.expect_alive();
    } catch (const Failed& failed) {
      throw Failed("after death at " + name + ": " + failed.what());
    }
    EXPECT_EQ(status_number(ProcDir::open(writer.pid()).read("status"), "TracerPid", -1), 0);
    expect_one_moment(PageImage(images.path(), capture(images, writer, kAllMemory)), writer);
  }
}

void target_is_untouched_after_a_failure_at_every_step() {
  for (size_t step = 1; step <= kCaptureSteps.size(); ++step) {
    const ImagesDirectory images;
    const std::string name = kCaptureSteps[step - 1].name;
    if (name == "killed" || name == "kill" || name == "hold" || name == "remote_call_done" || is_tracking_step(name) ||
        is_connection_step(name))
      continue;
    Writer writer(16 << 20, 0);
    Core core(images.path(), nullptr, std::to_string(step).c_str());
    core.request_capture(writer.pid(), true, true, kAllMemory);
    std::optional<FromCoreMessage> message = core.receive();
    while (message && message->kind != FromCoreKind::failed) message = core.receive();
    if (!message) throw Failed("step " + name + " did not fail");
    core.wait();
    try {
      writer.expect_alive();
      expect_no_children(writer.pid());
    } catch (const Failed& failed) {
      throw Failed("after failure at " + name + ": " + failed.what());
    }
    EXPECT(std::filesystem::is_empty(images.path()));
  }
}

}  // namespace
}  // namespace stasis::testing

int main(int argc, char** argv) {
  using namespace stasis::testing;
  return run_cases(
      {
          {"holds one moment of memory that is being written", holds_one_moment_of_memory_that_is_being_written},
          {"holds memory that a fork leaves out", holds_memory_that_a_fork_leaves_out},
          {"holds shared memory that was mapped just before", holds_shared_memory_that_was_mapped_just_before},
          {"copies while the tree stands still where memory is short",
           copies_while_the_tree_stands_still_where_memory_is_short},
          {"the target survives the death of the core at every step",
           target_survives_the_death_of_the_core_at_every_step},
          {"the target is untouched after a failure at every step", target_is_untouched_after_a_failure_at_every_step},
      },
      argc, argv);
}
