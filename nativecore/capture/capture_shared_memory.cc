#include "capture/capture_shared_memory.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <set>
#include <thread>
#include <tuple>
#include <utility>

#include "base/control_channel.h"
#include "base/log_ring.h"
#include "base/native_error.h"
#include "base/parallel.h"
#include "base/sys.h"
#include "capture/object_content.h"
#include "capture/parent_pages.h"
#include "capture/path_facts.h"

namespace stasis {
namespace {

// Second column of /proc/sysvipc/shm.
std::vector<int> segment_ids(const std::string& table) {
  std::vector<int> ids;
  for (size_t at = table.find('\n'); at != std::string::npos && at + 1 < table.size(); at = table.find('\n', at + 1)) {
    int key, id;
    if (std::sscanf(table.c_str() + at + 1, "%d %d", &key, &id) == 2) ids.push_back(id);
  }
  return ids;
}

// Attached to our own address space, for as long as it takes to open its memory.
class AttachedSegment {
 public:
  explicit AttachedSegment(int id) : address_(::shmat(id, nullptr, SHM_RDONLY)) {
    if (address_ == reinterpret_cast<void*>(-1)) throw NativeError::from_errno("shmat", errno);
    shmid_ds status;
    if (::shmctl(id, IPC_STAT, &status) < 0) {
      const int error = errno;
      ::shmdt(address_);
      throw NativeError::from_errno("shmctl", error);
    }
    const uint64_t start = reinterpret_cast<uint64_t>(address_);
    name_ = map_files_name(start, start + (status.shm_segsz + kPageBytes - 1) / kPageBytes * kPageBytes);
  }
  AttachedSegment(const AttachedSegment&) = delete;
  AttachedSegment& operator=(const AttachedSegment&) = delete;
  ~AttachedSegment() { ::shmdt(address_); }
  const std::string& name() const { return name_; }  // below /proc/PID of ours
  uint64_t device(const ProcDir& own) const { return stat_of(own.borrow(), name_.c_str()).device; }

 private:
  void* address_;
  std::string name_;
};

}  // namespace

SharedMemoryCapture::SharedMemoryCapture(CaptureContext& context, PageFiles& files)
    : context_(context), files_(files), device_(find_shared_memory_device()) {}

void SharedMemoryCapture::scan() {
  STASIS_CONTEXT("looking for shared memory");
  find_mapped();
  find_open();
  find_unattached();
  if (!context_.request.pre_dump) find_all_runs();
}

void SharedMemoryCapture::find_all_runs() {
  parallel_for(objects_.size(), kMaximalWorkers, [&](size_t index, bool in_caller) {
    if (in_caller) context_.check_abort();
    find_runs(index);
  });
}

bool SharedMemoryCapture::knows_segment(uint64_t id) const {
  return std::any_of(context_.data.shared_memory.begin(), context_.data.shared_memory.end(),
                     [id](const CapturedSharedMemory& object) {
                       return object.link.starts_with(kSegmentName) && object.stat.inode == id;
                     });
}

// Segments of the container's own namespace that no task has attached: we do, for a moment, in a thread that enters it.
void SharedMemoryCapture::find_unattached() {
  const ProcDir& root = context_.tree.processes().front()->proc;
  const uint64_t inode = stat_of(root.borrow(), "ns/ipc").inode;
  for (const CapturedNamespaceId& own : context_.data.host.own_namespaces) {
    if (own.kind == "ipc" && own.inode == inode) return;
  }
  std::vector<int> ids;
  for (const CapturedIpcNamespace& ipc : context_.data.ipc_namespaces) {
    if (ipc.inode != inode) continue;
    for (const int id : segment_ids(ipc.sysvipc_shm)) {
      if (!knows_segment(static_cast<uint64_t>(id))) ids.push_back(id);
    }
  }
  if (ids.empty()) return;
  std::exception_ptr failure;
  std::thread visitor([&] {
    try {
      STASIS_CONTEXT("reading shared memory that is not attached");
      sys::setns(sys::openat(root.borrow(), "ns/ipc", O_RDONLY).borrow(), CLONE_NEWIPC);
      const ProcDir own = ProcDir::open(::getpid());
      for (const int id : ids) {
        const AttachedSegment segment(id);
        // Of huge pages, which are on another file system: TypeScript misses it, and objects.
        if (segment.device(own) != device_) continue;
        add(own, segment.name().c_str(), own.readlink(segment.name().c_str()));
      }
    } catch (...) {
      failure = std::current_exception();
    }
  });
  visitor.join();
  if (failure) std::rethrow_exception(failure);
}

void SharedMemoryCapture::add(const ProcDir& proc, const char* name, std::string link) {
  sys::Try<UniqueFd> opened = sys::try_openat(proc.borrow(), name, O_RDONLY);
  if (!opened.ok()) throw NativeError::from_errno("openat", opened.error).with_path(link).with_pid(proc.host_pid());
  Object object;
  object.file = std::move(opened.value);
  const sys::Try<struct statx> stat = sys::try_statx(object.file.borrow(), "", AT_EMPTY_PATH);
  if (!stat.ok()) throw NativeError::from_errno("statx", stat.error).with_path(link).with_pid(proc.host_pid());
  const sys::Try<int64_t> seals = sys::try_fcntl(object.file.borrow(), F_GET_SEALS, 0);
  const auto number = static_cast<uint32_t>(objects_.size());
  uint32_t pages_id = context_.request.first_pages_id + number;
  for (const CapturedTask& task : context_.data.tasks) pages_id += task.zombie ? 0 : 1;
  context_.data.shared_memory.push_back({std::move(link), to_captured(stat.value), static_cast<uint32_t>(seals.value)});
  pages_.push_back({number, pages_id, {}, {}});
  objects_.push_back(std::move(object));
}

void SharedMemoryCapture::find_mapped() {
  std::set<SharedObjectKey> known;
  for (size_t i = 0; i < context_.data.tasks.size(); ++i) {
    const CapturedTask& task = context_.data.tasks[i];
    const ProcDir& proc = context_.tree.processes()[i]->proc;
    for (const Vma& vma : task.vmas) {
      if (vma.device != device_ || vma.name.empty()) continue;
      if (!known.insert(shared_object_key(vma.name, vma.inode)).second) continue;
      STASIS_CONTEXT("opening shared memory", task.host_pid);
      const std::string name = map_files_name(vma.start, vma.end);
      add(proc, name.c_str(), proc.readlink(name.c_str()));
    }
  }
}

void SharedMemoryCapture::find_open() {
  std::map<pid_t, const ProcDir*> directories;
  for (const auto& process : context_.tree.processes()) directories.emplace(process->host_pid, &process->proc);
  for (const CapturedOpenFile& file : context_.data.open_files) {
    if (!file.path.link.starts_with(kMemfdName)) continue;
    const bool known = std::any_of(context_.data.shared_memory.begin(), context_.data.shared_memory.end(),
                                   [&](const CapturedSharedMemory& object) {
                                     return object.stat.device == file.path.stat.device &&
                                            object.stat.inode == file.path.stat.inode && object.link == file.path.link;
                                   });
    if (known) continue;
    STASIS_CONTEXT("opening shared memory", file.host_pid, file.fd);
    char name[32];
    std::snprintf(name, sizeof name, "fd/%d", file.fd);
    add(*directories.at(file.host_pid), name, file.path.link);
  }
}

void SharedMemoryCapture::find_runs(size_t index) {
  STASIS_CONTEXT("finding pages of shared memory");
  pages_[index].runs =
      find_data_runs(objects_[index].file.borrow(), context_.data.shared_memory[index].stat.size_bytes);
}

// Where nobody keeps note of writes: they come by any mapping of any process, by write(2), by fallocate(2). So it is
// compared, with what the parent has under the same number in images. The numbers are TypeScript's
// (engine/resources/shared-objects.ts), and are these unless two objects would have the same one.
std::vector<const ParentObject*> SharedMemoryCapture::find_parents() const {
  std::vector<const ParentObject*> parents(objects_.size(), nullptr);
  if (context_.request.parent_objects.empty()) return parents;
  std::map<uint64_t, const ParentObject*> known;
  for (const ParentObject& parent : context_.request.parent_objects) known.emplace(parent.number, &parent);
  std::set<uint32_t> taken;
  for (size_t i = 0; i < objects_.size(); ++i) {
    const auto number = static_cast<uint32_t>(context_.data.shared_memory[i].stat.inode);
    if (!taken.insert(number).second) {
      log_line("two objects of shared memory have the number %u: nothing of it is left to the parent", number);
      return std::vector<const ParentObject*>(objects_.size(), nullptr);
    }
    const auto found = known.find(number);
    if (found != known.end()) parents[i] = found->second;
  }
  return parents;
}

uint64_t SharedMemoryCapture::bytes_to_save() const {
  uint64_t total = 0;
  for (const SharedPages& object : pages_) total += run_pages(object.runs) * kPageBytes;
  return total;
}

void SharedMemoryCapture::save(SharedMemoryCopies& copies) {
  if (!context_.request.write_pages || context_.request.pre_dump) return;
  const uint64_t total = bytes_to_save();
  if (!has_room_for_copies(context_, total)) {
    log_line("%llu bytes of shared memory are written inside the window: there is no room for a copy",
             static_cast<unsigned long long>(total));
    return write(PageFiles::Hurry::yes);
  }
  std::vector<CopyOrder> orders;
  for (size_t i = 0; i < objects_.size(); ++i) {
    const uint64_t length = run_pages(pages_[i].runs) * kPageBytes;
    if (length == 0) continue;
    auto copy = std::make_unique<CopiedObject>(length, copies.take(length));
    orders.push_back({objects_[i].file.borrow(), &pages_[i].runs, copy.get()});
    objects_[i].source = std::move(copy);
  }
  copy_objects(orders, context_.check_abort);
}

void SharedMemoryCapture::write(PageFiles::Hurry hurry) {
  if (!context_.request.write_pages || objects_.empty() || std::exchange(written_, true)) return;
  // Of a tree that runs: what changes meanwhile differs from the parent in the round that counts.
  if (context_.request.pre_dump) find_all_runs();
  const std::vector<const ParentObject*> known = find_parents();
  std::deque<ParentPages> parents;
  std::vector<PageFiles::Content> contents;
  for (size_t i = 0; i < objects_.size(); ++i) {
    if (!objects_[i].source) objects_[i].source = std::make_unique<ObjectContent>(objects_[i].file.borrow());
    contents.push_back({0, pages_[i].pages_id, pages_[i].runs, objects_[i].source.get(), {}});
    if (known[i] && hurry == PageFiles::Hurry::no)
      contents.back().parent = &parents.emplace_back(kParentDescriptor, context_.request.parent_files, known[i]->runs);
  }
  files_.write(contents, hurry, context_.check_abort);
  for (size_t i = 0; i < objects_.size(); ++i) {
    pages_[i].runs = std::move(contents[i].runs);
    pages_[i].unchanged_runs = std::move(contents[i].equal);
  }
}

}  // namespace stasis
