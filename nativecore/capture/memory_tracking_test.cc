// Incremental captures: what is left to the parent and what is not, and what
// becomes of the keeper, whoever dies.
#include "capture/memory_tracking.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>

#include "base/page.h"
#include "base/testing_child.h"
#include "capture/capture_steps.h"
#include "capture/testing_core.h"
#include "proc/proc_dir.h"

namespace stasis::testing {
namespace {

constexpr uint64_t kPages = 2048;

// A program that changes its memory when it is told to, and in no other way.
class Changer {
 public:
  enum Order : int { kNothing, kWrite, kDiscard, kMapAnew, kMove, kMoveBack, kFork };

  Changer() : child_(run) { await_done(); }

  pid_t pid() const { return child_.pid(); }
  uint64_t page(uint64_t number) const { return child_.shared().start + number * kPageBytes; }
  void order(Order what, uint64_t page_number) {
    Shared& shared = child_.shared();
    shared.page = page_number;
    shared.done = 0;
    shared.order = what;
    await_done();
  }

 private:
  struct Shared {
    std::atomic<int> order, done;
    std::atomic<uint64_t> page, start;
  };

  void await_done() {
    await([this] { return child_.shared().done.load(); }, "the program does not go on");
  }

  [[noreturn]] static void run(Shared& shared) {
    auto* memory = static_cast<unsigned char*>(
        ::mmap(nullptr, 2 * kPages * kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ::madvise(memory, 2 * kPages * kPageBytes, MADV_NOHUGEPAGE);
    for (uint64_t i = 0; i < kPages; ++i) memory[i * kPageBytes] = static_cast<unsigned char>(1 + i % 200);
    shared.start = reinterpret_cast<uint64_t>(memory);
    for (;;) {
      shared.done = 1;
      while (shared.order == kNothing) ::sched_yield();
      unsigned char* const page = memory + shared.page * kPageBytes;
      switch (shared.order.exchange(kNothing)) {
        case kWrite: page[1] = static_cast<unsigned char>(page[1] + 1); break;
        case kDiscard: ::madvise(page, kPageBytes, MADV_DONTNEED); break;
        case kMapAnew:
          ::mmap(page, kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
          page[0] = 0xcc;
          break;
        case kMove:
          ::mremap(page, kPageBytes, kPageBytes, MREMAP_MAYMOVE | MREMAP_FIXED, memory + kPages * kPageBytes);
          break;
        case kMoveBack:
          ::mremap(memory + kPages * kPageBytes, kPageBytes, kPageBytes, MREMAP_MAYMOVE | MREMAP_FIXED, page);
          break;
        case kFork:
          if (::fork() == 0) ::_exit(0);
          ::wait(nullptr);
          break;
      }
    }
  }

  SharingChild<Shared> child_;
};

struct Pages {
  explicit Pages(const std::string& page_map) {
    protozero::pbf_reader message(page_map);
    while (message.next()) {
      if (message.tag() != 1) {
        message.skip();
        continue;
      }
      protozero::pbf_reader task = message.get_message();
      while (task.next()) {
        if (task.tag() != 3 && task.tag() != 4) {
          task.skip();
          continue;
        }
        std::vector<PageRun>& runs = task.tag() == 3 ? written : unchanged;
        PageRun& run = runs.emplace_back();
        protozero::pbf_reader fields = task.get_message();
        while (fields.next()) {
          if (fields.tag() == 1) {
            run.address = fields.get_uint64();
          } else {
            run.page_count = fields.get_uint64();
          }
        }
      }
    }
  }
  static bool has(const std::vector<PageRun>& runs, uint64_t address) {
    for (const PageRun& run : runs) {
      if (address >= run.address && address < run.address + run.page_count * kPageBytes) return true;
    }
    return false;
  }
  std::vector<PageRun> written, unchanged;
};

size_t keepers_of(pid_t host_pid) {
  size_t count = 0;
  for (const pid_t other : process_ids()) {
    const std::optional<ProcDir> proc = ProcDir::try_open(other);
    if (!proc || proc->read_or_empty("comm") != "stasis-keeper\n") continue;
    const std::string line = proc->read_or_empty("cmdline");
    const std::string wanted = std::string("keep") + '\0' + std::to_string(host_pid) + '\0';
    if (line.find(wanted) != std::string::npos) ++count;
  }
  return count;
}

void expect_keepers(pid_t host_pid, size_t wanted) {
  const Deadline deadline = Deadline::in_ms(10'000);
  while (keepers_of(host_pid) != wanted) {
    if (deadline.expired())
      throw Failed(std::to_string(keepers_of(host_pid)) + " keepers, expected " + std::to_string(wanted));
    ::sched_yield();
  }
}

Pages capture(const Changer& changer, const Core::Tokens& tokens, bool keep = true, uint64_t copy_on_write_bytes = 0) {
  const ImagesDirectory images;
  Core core(images.path());
  core.request_capture(changer.pid(), true, true, copy_on_write_bytes, tokens);
  core.expect(FromCoreKind::captured);
  const Pages pages(core.expect(FromCoreKind::pages_written));
  core.expect(FromCoreKind::thawed);
  if (keep) core.send(7, "");
  core.hang_up();
  EXPECT_EQ(core.wait(), 0);
  return pages;
}

void leaves_what_has_not_changed_to_the_parent() {
  for (const uint64_t copy_on_write_bytes : {uint64_t{0}, UINT64_MAX}) {
    Changer changer;
    const Pages first = capture(changer, {"one", ""}, true, copy_on_write_bytes);
    EXPECT(Pages::has(first.written, changer.page(0)) && first.unchanged.empty());
    expect_keepers(changer.pid(), 1);
    changer.order(Changer::kWrite, 10);
    changer.order(Changer::kDiscard, 20);
    changer.order(Changer::kMapAnew, 30);
    changer.order(Changer::kMove, 40);
    changer.order(Changer::kFork, 0);
    changer.order(Changer::kWrite, 50);
    const Pages second = capture(changer, {"two", "one"}, true, copy_on_write_bytes);
    expect_keepers(changer.pid(), 1);
    for (const uint64_t page : {10, 30, 50}) {
      EXPECT(Pages::has(second.written, changer.page(page)));
      EXPECT(!Pages::has(second.unchanged, changer.page(page)));
    }
    EXPECT(Pages::has(second.written, changer.page(kPages)));  // where page 40 has gone
    for (const uint64_t page : {20, 40}) {
      EXPECT(!Pages::has(second.written, changer.page(page)));
      EXPECT(!Pages::has(second.unchanged, changer.page(page)));
    }
    for (const uint64_t page : {0, 9, 11, 1000, 2047}) EXPECT(Pages::has(second.unchanged, changer.page(page)));
    // What changed before the parent is the parent's.
    changer.order(Changer::kWrite, 60);
    const Pages third = capture(changer, {"three", "two"}, true, copy_on_write_bytes);
    EXPECT(Pages::has(third.written, changer.page(60)));
    for (const uint64_t page : {10, 30, 50}) EXPECT(Pages::has(third.unchanged, changer.page(page)));
  }
}

// The kernel joins what comes back with its neighbours, and takes the protection from all of them; marks stay behind.
void trusts_no_mark_where_protection_was_lost() {
  for (const uint64_t copy_on_write_bytes : {uint64_t{0}, UINT64_MAX}) {
    Changer changer;
    capture(changer, {"one", ""}, true, copy_on_write_bytes);
    changer.order(Changer::kMove, 40);
    capture(changer, {"two", "one"}, true, copy_on_write_bytes);
    changer.order(Changer::kMoveBack, 40);
    changer.order(Changer::kWrite, 10);
    const Pages third = capture(changer, {"three", "two"}, true, copy_on_write_bytes);
    for (const uint64_t page : {10, 40}) EXPECT(Pages::has(third.written, changer.page(page)));
    // It is protected again by then.
    changer.order(Changer::kWrite, 20);
    const Pages fourth = capture(changer, {"four", "three"}, true, copy_on_write_bytes);
    EXPECT(Pages::has(fourth.written, changer.page(20)));
    EXPECT(Pages::has(fourth.unchanged, changer.page(10)));
  }
}

void writes_everything_where_nothing_is_known() {
  Changer changer;
  capture(changer, {"one", ""});
  // Another parent than the last capture's.
  EXPECT(capture(changer, {"two", "zero"}).unchanged.empty());
  // Of a capture that came to nothing there is no keeper.
  capture(changer, {"three", "two"}, false);
  expect_keepers(changer.pid(), 0);
  EXPECT(capture(changer, {"four", "three"}).unchanged.empty());
  EXPECT(capture(changer, {"five", "two"}).unchanged.empty());
  expect_keepers(changer.pid(), 1);
}

void a_killed_keeper_costs_a_full_capture() {
  Changer changer;
  capture(changer, {"one", ""});
  for (const pid_t host_pid : process_ids()) {
    const std::optional<ProcDir> proc = ProcDir::try_open(host_pid);
    if (proc && proc->read_or_empty("comm") == "stasis-keeper\n" &&
        proc->read_or_empty("cmdline").find(std::to_string(changer.pid())) != std::string::npos)
      ::kill(host_pid, SIGKILL);
  }
  expect_keepers(changer.pid(), 0);
  const Pages second = capture(changer, {"two", "one"});
  EXPECT(second.unchanged.empty() && Pages::has(second.written, changer.page(0)));
  EXPECT(!capture(changer, {"three", "two"}).unchanged.empty());
}

void the_keeper_ends_with_the_tree() {
  pid_t host_pid = 0;
  {
    Changer changer;
    host_pid = changer.pid();
    capture(changer, {"one", ""});
    expect_keepers(host_pid, 1);
  }
  expect_keepers(host_pid, 0);
}

// Whatever the core dies of and when: the next capture lacks nothing.
void nothing_is_lost_by_a_death_at_any_step() {
  for (size_t step = 1; step <= kCaptureSteps.size(); ++step) {
    const std::string name = kCaptureSteps[step - 1].name;
    if (name == "killed" || name == "kill" || name == "hold" || name.starts_with("twin_")) continue;
    const ImagesDirectory images;
    Changer changer;
    capture(changer, {"one", ""});
    changer.order(Changer::kWrite, 10);
    {
      Core core(images.path(), std::to_string(step).c_str());
      core.request_capture(changer.pid(), true, true, 0, {"two", "one"});
      if (name == "keep") {
        core.expect(FromCoreKind::captured);
        core.expect(FromCoreKind::pages_written);
        core.expect(FromCoreKind::thawed);
        core.send(7, "");
      }
      core.hang_up();
      core.wait();
    }
    const Deadline deadline = Deadline::in_ms(10'000);
    while (keepers_of(changer.pid()) > 1 && !deadline.expired()) ::sched_yield();
    changer.order(Changer::kWrite, 20);
    const Pages next = capture(changer, {"three", "one"});
    for (const uint64_t page : {10, 20}) {
      if (!Pages::has(next.written, changer.page(page)))
        throw Failed("page " + std::to_string(page) + " is lost after death at " + name);
    }
    if (ProcDir::open(changer.pid()).numbers("fd") != ProcDir::open(::getpid()).numbers("fd"))
      for (const int fd : ProcDir::open(changer.pid()).numbers("fd")) {
        const std::string link = ProcDir::open(changer.pid()).readlink(("fd/" + std::to_string(fd)).c_str());
        if (link.find("userfaultfd") != std::string::npos) throw Failed("a descriptor is left after death at " + name);
      }
    expect_keepers(changer.pid(), 1);
  }
}

}  // namespace
}  // namespace stasis::testing

int main(int argc, char** argv) {
  using namespace stasis::testing;
  if (argc > 2 && std::strcmp(argv[1], "keep") == 0) return stasis::run_keep_command(argc, argv);
  return run_cases(
      {
          {"leaves what has not changed to the parent", leaves_what_has_not_changed_to_the_parent},
          {"trusts no mark where protection was lost", trusts_no_mark_where_protection_was_lost},
          {"writes everything where nothing is known", writes_everything_where_nothing_is_known},
          {"a killed keeper costs a full capture", a_killed_keeper_costs_a_full_capture},
          {"the keeper ends with the tree", the_keeper_ends_with_the_tree},
          {"nothing is lost by a death at any step", nothing_is_lost_by_a_death_at_any_step},
      },
      argc, argv);
}
