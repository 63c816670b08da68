#include "capture/capture_command.h"

#include <malloc.h>
#include <sched.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <latch>
#include <memory>
#include <new>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "base/control_channel.h"
#include "base/failure_message.h"
#include "base/fault_point.h"
#include "base/log_ring.h"
#include "base/native_error.h"
#include "base/parallel.h"
#include "base/progress.h"
#include "base/sys.h"
#include "base/timing.h"
#include "capture/capture_connections.h"
#include "capture/capture_deleted_files.h"
#include "capture/capture_from_inside.h"
#include "capture/capture_host.h"
#include "capture/capture_memory.h"
#include "capture/capture_namespaces.h"
#include "capture/capture_shared_memory.h"
#include "capture/capture_steps.h"
#include "capture/capture_tasks.h"
#include "capture/capture_tree.h"
#include "capture/copy_space.h"
#include "capture/encode_capture.h"
#include "capture/memory_tracking.h"
#include "capture/paused_container.h"
#include "capture/twin_reaper.h"
#include "parasite/infection.h"
#include "trace/frozen_tree.h"

namespace stasis {
namespace {

// More than this is not copied at the expense of everything else: 0.1 s of work.
constexpr uint64_t kHurriedBytes = 256u << 20;
// Of our descriptors at most one in this many keeps a text open.
constexpr size_t kShareOfTexts = 4;
constexpr uint64_t kKillPatienceMs = 30'000;
constexpr uint64_t kVisitPatienceMs = 2'000;

constexpr int kHeapBytes = 16 << 20;
constexpr size_t kHugePageBytes = 2 << 20;
constexpr size_t kWarmBytes = 4 * kHugePageBytes;
constexpr size_t kHelperWarmBytes = 2 * kHugePageBytes;
// With fewer threads or processes the others have nothing to read.
constexpr size_t kManyTasks = 16;

// The other side has gone, or has said `abort`.
constexpr const char* kAborted = "aborted";

// While the tree stands still, it waits for us, and so does whoever uses it: on
// a busy machine we go first (measured at a load of 5 on 2 processors: 6 ms
// frozen instead of 30). Without the privilege we wait our turn.
class FreezePriority {
 public:
  FreezePriority() {
    const sched_param lowest_real_time{1};
    raised_ = ::sched_setscheduler(0, SCHED_RR, &lowest_real_time) == 0;
  }
  ~FreezePriority() { relax(); }
  void relax() {
    if (!std::exchange(raised_, false)) return;
    const sched_param ordinary{0};
    if (::sched_setscheduler(0, SCHED_OTHER, &ordinary) < 0) log_line("cannot give up the real-time priority");
  }

 private:
  bool raised_ = false;
};

// What lies before the first boundary of huge pages is kept until we end.
void keep_for_good(void* block) { __asm__ volatile("" : : "r"(block) : "memory"); }

// Memory that the window needs is there before it: a page fault costs 0.3 us, with
// shadow page tables 10, and a hundred processes are some thousand of them. In pages
// of 2 MiB where the system gives them: 4 faults, not 2048 that a small checkpoint
// would wait for. Each thread has an arena of its own: with one for all, they
// waited for each other (twice the time).
void warm_up_heap(size_t warm_bytes) {
  char* const block = static_cast<char*>(std::malloc(kHugePageBytes + warm_bytes));
  if (block == nullptr) throw std::bad_alloc();
  const size_t to_boundary = -reinterpret_cast<uintptr_t>(block) % kHugePageBytes;
  char* const heap = block + to_boundary;
  (void)::madvise(heap, warm_bytes, MADV_HUGEPAGE);  // refused where there are none: then it is small ones
  std::memset(heap, 1, warm_bytes);
  __asm__ volatile("" : : "r"(heap) : "memory");  // it has to be written
  // Given back but for what lies before the boundary: nothing is to be allocated in pages that are not there.
  keep_for_good(std::realloc(block, to_boundary));
}

void set_up_heap() {
  ::mallopt(M_MMAP_THRESHOLD, kHeapBytes);
  ::mallopt(M_TRIM_THRESHOLD, 2 * kHeapBytes);
  ::mallopt(M_TOP_PAD, kHeapBytes);
}

// A thread that starts takes over the arena of one that has ended, so those that
// will read in the window find theirs warm. All at once, or they would take turns with one.
void warm_up_helpers() {
  const unsigned count = std::min(kMaximalWorkers, processor_count());
  std::latch all_have_theirs(count);
  std::vector<std::jthread> helpers;
  for (unsigned i = 0; i < count; ++i)
    helpers.emplace_back([&] {
      warm_up_heap(kHelperWarmBytes);
      all_have_theirs.arrive_and_wait();
    });
}

class CaptureCommand {
 public:
  explicit CaptureCommand(ControlChannel& channel) : channel_(channel) {}

  int run(const CaptureRequest& request) {
    arm_capture_faults(request);
    if (!request.leave_running) return capture_and_hold(request);
    // A second attempt is for the few programs that keep memory from their children.
    std::set<pid_t> read_in_window;
    MemoryTracking tracking(request);
    while (!capture_and_go_on(request, tracking, read_in_window)) {
    }
    return 0;
  }

  // Takes an `abort` that check_abort() has seen; false if it was end of file.
  bool abort_was_asked() {
    const std::optional<ToCoreMessage> message = channel_.receive(0);
    return message && message->kind == ToCoreKind::abort;
  }

  PhaseRecorder& phases() { return phases_; }

 private:
  // What is done before the first thread is stopped.
  struct Preparation {
    explicit Preparation(const CaptureRequest& request) {
      capture_host_before_freeze(data.host);
      prepare_infection();
      find_return_paths_before_freeze(request.root_host_pid, return_paths);
      const size_t descriptor_limit = sys::raise_descriptor_limit();  // before the tree is opened, which may be large
      tree = find_running_tree(request.root_host_pid, descriptor_limit / kShareOfTexts);
      files.open_before_freeze(tree, descriptor_limit);
      if (count_tasks(tree) >= kManyTasks) warm_up_helpers();
      kcmp_orders = order_tasks_before_freeze(tree);
      if (request.leave_running) {
        ask_once_before_freeze(tree);
        copies.make_before_freeze(request, tree);
        copy_space.make_before_freeze(tree);
        many_mappings = find_many_mappings_before_freeze(tree);
      }
    }
    std::vector<ProcDir> tree;
    KcmpOrders kcmp_orders;
    KnownMappings many_mappings;
    CaptureData data;
    ReturnPathFinder return_paths;
    FilesCapture files;
    SharedMemoryCopies copies;
    CopySpace copy_space;
  };

  CaptureContext context_of(const CaptureRequest& request, FrozenTree& tree, Preparation& preparation,
                            MemoryTracking& tracking) {
    CaptureData& data = preparation.data;
    data.was_paused = request.found_paused;
    return {tree,     request, data, Deadline::in_ms(request.deadline_ms), [this] { check_abort(); },
            tracking, nullptr, {},   std::move(preparation.kcmp_orders),   std::move(preparation.many_mappings)};
  }

  // A tree that is to end: it stays stopped until it is killed, so pages are
  // written while TypeScript works on the metadata.
  int capture_and_hold(const CaptureRequest& request) {
    PausedContainer paused(request.found_paused ? request.freezer_file : std::string());
    warm_up_heap(kWarmBytes);
    Preparation preparation(request);
    MemoryTracking tracking(request);
    FreezePriority priority;
    auto namespaces = std::make_unique<NamespaceCapture>();
    const uint64_t frozen_from_ns = monotonic_now_ns();
    FrozenTree tree = freeze(request, paused, preparation.tree);
    ConnectionCapture connections;  // let go before the tree is
    CaptureContext context = context_of(request, tree, preparation, tracking);
    context.connections = &connections;
    capture_tree(context, preparation.return_paths, preparation.files, std::move(namespaces), phases_);
    phases_.enter("find names");
    preparation.files.find_names(context);
    phases_.enter("scan pages");
    Progress progress(channel_, "write pages");
    PageFiles files(kImagesDescriptor, progress, codec_of_name(request.page_compression),
                    request.page_compression_level, static_cast<PageWriting>(request.page_writing));
    MemoryCapture memory(context, files);
    memory.scan();
    SharedMemoryCapture shared(context, files);
    shared.scan();
    DeletedFilesCapture deleted(context, kImagesDescriptor, progress, shared.device());
    deleted.scan();
    send_captured(preparation.data);
    priority.relax();
    phases_.enter("write pages");
    memory.write();
    shared.write();
    deleted.write();
    phases_.finish();
    fault_point("capture_complete");
    connections.check_unchanged();
    channel_.send(FromCoreKind::pages_written,
                  encode_page_map(memory.pages(), shared.pages(), phases_.phases(), written(files, deleted)));
    return hold(tree, paused, files, deleted, connections, frozen_from_ns);
  }

  // A tree that lives on: what is large is read from twins after the thaw.
  // False: once more, with more read inside the window.
  bool capture_and_go_on(const CaptureRequest& request, MemoryTracking& tracking, std::set<pid_t>& read_in_window) {
    PausedContainer paused(request.found_paused ? request.freezer_file : std::string());
    // A paused container does not run on after the thaw, so nothing is won, and it could not be visited.
    std::optional<TwinReaper> reaper;
    if (request.copy_on_write_bytes > 0 && !request.found_paused) reaper.emplace();
    // After that fork: what parent and child have in common is copied page by page when it is written to.
    warm_up_heap(kWarmBytes);
    Preparation preparation(request);
    CaptureData& data = preparation.data;
    FreezePriority priority;
    auto namespaces = std::make_unique<NamespaceCapture>();
    const uint64_t frozen_from_ns = monotonic_now_ns();
    FrozenTree tree = freeze(request, paused, preparation.tree);
    ConnectionCapture connections;  // let go before the tree is
    CaptureContext context = context_of(request, tree, preparation, tracking);
    context.connections = &connections;
    context.reaper = reaper ? &*reaper : nullptr;
    context.read_in_window = read_in_window;
    capture_tree(context, preparation.return_paths, preparation.files, std::move(namespaces), phases_);
    connections.let_go();  // what comes from here on is for the tree that runs on, and need not be sent twice
    phases_.enter("scan pages");
    Progress progress(channel_, "write pages");
    PageFiles files(kImagesDescriptor, progress, codec_of_name(request.page_compression),
                    request.page_compression_level, static_cast<PageWriting>(request.page_writing));
    MemoryCapture memory(context, files);
    memory.scan();
    SharedMemoryCapture shared(context, files);
    shared.scan();
    DeletedFilesCapture deleted(context, kImagesDescriptor, progress, shared.device());
    deleted.scan();
    if (memory.found_bytes() + shared.bytes_to_save() + deleted.bytes_to_save() > kHurriedBytes) priority.relax();
    phases_.enter("copy pages");
    memory.save_what_has_no_twin(preparation.copy_space);
    shared.save(preparation.copies);
    deleted.save(preparation.copies, shared.bytes_to_save());
    if (!request.tracking_token.empty()) phases_.enter("protect memory");
    tracking.protect(context);
    fault_point("capture_complete");

    phases_.enter("thaw");
    tree.thaw();
    phases_.finish();
    phases_.add("frozen", frozen_from_ns, monotonic_now_ns());
    priority.relax();
    fault_point("thawed");
    phases_.enter("find names");
    preparation.files.find_names(context);
    phases_.enter("read twins");
    std::set<pid_t> incomplete = memory.read_twins();
    if (!incomplete.empty()) {
      log_line("memory that a fork does not copy was found: capturing once more");
      read_in_window.merge(incomplete);
      end_twins(data, reaper);
      return false;
    }
    send_captured(data);
    phases_.enter("write pages");
    memory.write();
    shared.write();
    deleted.write();
    phases_.enter("end twins");
    end_twins(data, reaper);
    phases_.finish();
    const bool tracked = tracking.start_keeper();
    channel_.send(FromCoreKind::pages_written,
                  encode_page_map(memory.pages(), shared.pages(), phases_.phases(), written(files, deleted)));
    channel_.send(FromCoreKind::thawed, encode_thawed(phases_.phases(), tracked));
    files.keep();
    deleted.keep();
    if (tracked) keep_when_committed(tracking);
    return true;
  }

  // Without a word the images have come to nothing, and with them the keeper.
  void keep_when_committed(MemoryTracking& tracking) {
    const std::optional<ToCoreMessage> message = channel_.receive();
    if (message && message->kind == ToCoreKind::keep) tracking.keep();
  }

  void end_twins(CaptureData& data, std::optional<TwinReaper>& reaper) {
    fault_point("end_twins");
    for (CapturedTask& task : data.tasks) task.twin.reset();
    fault_point("visit_parents");
    if (reaper) reaper->finish(Deadline::in_ms(kVisitPatienceMs));
  }

  FrozenTree freeze(const CaptureRequest& request, PausedContainer& paused, std::vector<ProcDir>& known) {
    fault_point("begin");
    phases_.enter("freeze");
    FrozenTree tree = FrozenTree::freeze({
        .root_host_pid = request.root_host_pid,
        .known = &known,
        .root_start_ticks = request.root_start_ticks,
        .deadline = Deadline::in_ms(request.deadline_ms),
        .after_interrupting = [&paused] { paused.thaw(); },
        .before_detaching = [&paused] { paused.refreeze(); },
        .aborted = [this] { return channel_.has_news(); },
    });
    fault_point("frozen");
    return tree;
  }

  // Nobody says anything before `captured` but to abort.
  void check_abort() {
    if (channel_.has_news()) throw NativeError(kAborted);
  }

  void send_captured(const CaptureData& data) {
    phases_.finish();
    const std::vector<TimedPhase> so_far = phases_.phases();
    phases_.enter("send metadata");
    const std::string encoded = encode_capture(data, so_far, take_log_lines());
    channel_.send(FromCoreKind::captured, encoded);
    phases_.finish();
  }

  static std::vector<WrittenPageFile> written(const PageFiles& files, const DeletedFilesCapture& deleted) {
    std::vector<WrittenPageFile> all = files.written();
    all.insert(all.end(), deleted.written().begin(), deleted.written().end());
    return all;
  }

  // The tree stays in its ptrace stops until the images are committed.
  int hold(FrozenTree& tree, PausedContainer& paused, PageFiles& files, DeletedFilesCapture& deleted,
           ConnectionCapture& connections, uint64_t frozen_from_ns) {
    fault_point("hold");
    phases_.enter("hold");
    const std::optional<ToCoreMessage> decision = channel_.receive();
    if (!decision || decision->kind != ToCoreKind::kill) {
      connections.let_go();
      tree.thaw();
      phases_.finish();
      phases_.add("frozen", frozen_from_ns, monotonic_now_ns());
      if (!decision) return 1;
      channel_.send(FromCoreKind::rolled_back, encode_timings(phases_.phases()));
      return decision->kind == ToCoreKind::abort ? 0 : 1;
    }
    files.keep();
    deleted.keep();
    fault_point("kill");
    phases_.enter("kill");
    connections.silence();
    tree.kill_all(Deadline::in_ms(kKillPatienceMs));
    connections.finish_end();
    paused.forget();
    phases_.finish();
    phases_.add("frozen", frozen_from_ns, monotonic_now_ns());
    fault_point("killed");
    channel_.send(FromCoreKind::killed, encode_timings(phases_.phases()));
    return 0;
  }

  ControlChannel& channel_;
  PhaseRecorder phases_;
};

// Everything has been undone by the time this runs: the owners' scopes have ended.
int report_failure(ControlChannel& channel, CaptureCommand& command, NativeError error) {
  try {
    error.phase = command.phases().current();
    if (error.reason == kAborted) {
      if (!command.abort_was_asked()) return 1;
      command.phases().finish();
      channel.send(FromCoreKind::rolled_back, encode_timings(command.phases().phases()));
      return 0;
    }
    log_line("failed: %s", error.what());
    channel.send(FromCoreKind::failed, encode_failure(error, take_log_lines()));
  } catch (const NativeError& second) {
    log_line("cannot report a failure: %s", second.what());
  }
  return 1;
}

}  // namespace

int run_capture_command(bool early) {
  prepare_signal_waiting();
  set_up_heap();
  ControlChannel channel{UniqueFd(kControlDescriptor)};
  CaptureCommand command(channel);
  int status = 1;
  try {
    if (early && !channel.receive_descriptors()) return 0;
    const std::optional<ToCoreMessage> message = channel.receive();
    if (!message) return 1;
    if (message->kind != ToCoreKind::capture) throw NativeError("bad_request", "waiting for a CaptureRequest");
    status = command.run(decode_capture_request(message->body));
  } catch (const NativeError& error) {
    status = report_failure(channel, command, error);
  } catch (const std::bad_alloc&) {
    status = report_failure(channel, command, NativeError("no_memory", "capturing"));
  } catch (const std::exception& error) {
    status = report_failure(channel, command, NativeError("bug", error.what()));
  }
  flush_log();
  return status;
}

}  // namespace stasis
