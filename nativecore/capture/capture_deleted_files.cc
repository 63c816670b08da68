#include "capture/capture_deleted_files.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <protozero/pbf_writer.hpp>
#include <string_view>

#include "base/log_ring.h"
#include "base/native_error.h"
#include "base/parallel.h"
#include "base/sys.h"
#include "capture/object_content.h"
#include "capture/path_facts.h"

namespace stasis {
namespace {

constexpr std::string_view kDeleted = " (deleted)";
constexpr uint32_t kOverflowId = 65534;

// Magic numbers and fields of CRIU's image, which oci-spec/images has as well.
constexpr uint32_t kImageMagic = 0x54564319;
constexpr uint32_t kGhostFileMagic = 0x52583605;
enum GhostField : uint32_t {
  kUid = 1,
  kGid = 2,
  kMode = 3,
  kDevice = 4,
  kInode = 5,
  kAccessTime = 7,
  kModifyTime = 8,
  kChunks = 9,
  kSize = 10
};
enum ChunkField : uint32_t { kLength = 1, kOffset = 2 };
enum TimeField : uint32_t { kSeconds = 1, kMicroseconds = 2 };

// Their files have no content of their own, or are other rooms'.
bool is_kernel_file_system(uint64_t magic) {
  constexpr uint64_t kMqueueMagic = 0x19800202, kPidFsMagic = 0x50494446;
  return magic == PROC_SUPER_MAGIC || magic == HUGETLBFS_MAGIC || magic == NSFS_MAGIC || magic == kMqueueMagic ||
         magic == kPidFsMagic;
}

std::string link_of(const ProcDir& proc, const std::string& name) { return proc.try_readlink(name.c_str()).value; }

void append_u32(std::string& to, uint32_t value) { to.append(reinterpret_cast<const char*>(&value), sizeof value); }

// As the format has every message: its length before it.
void append_message(std::string& to, const std::string& message) {
  append_u32(to, static_cast<uint32_t>(message.size()));
  to += message;
}

std::string chunk_head(uint64_t offset, uint64_t length_bytes) {
  std::string message;
  protozero::pbf_writer chunk(message);
  chunk.add_uint64(kLength, length_bytes);
  chunk.add_uint64(kOffset, offset);
  std::string head;
  append_message(head, message);
  return head;
}

void put_time(protozero::pbf_writer& entry, uint32_t field, const statx_timestamp& time) {
  protozero::pbf_writer value(entry, field);
  value.add_uint64(kSeconds, time.tv_sec < 0 ? 0 : static_cast<uint64_t>(time.tv_sec));
  value.add_uint64(kMicroseconds, time.tv_nsec / 1000);
}

}  // namespace

uint32_t inside_id(const std::string& map, uint32_t id) {
  if (map.empty()) return id;
  for (size_t at = 0; at < map.size();) {
    unsigned inside, outside, count;
    if (std::sscanf(map.c_str() + at, "%u %u %u", &inside, &outside, &count) == 3 && id >= outside &&
        id - outside < count)
      return id - outside + inside;
    const size_t end = map.find('\n', at);
    if (end == std::string::npos) break;
    at = end + 1;
  }
  return kOverflowId;
}

struct DeletedFilesCapture::File {
  UniqueFd file;  // for reading
  struct statx stat;
  std::vector<PageRun> runs;
  std::unique_ptr<CopiedObject> copy;
};

// One image that is being written: where the data of each run goes.
struct DeletedFilesCapture::Image {
  struct Placed {
    uint64_t address, image_offset;
  };
  Image(int directory, const std::string& name, const File& file, const std::string& head)
      : size_bytes(file.stat.stx_size), output(directory, name, PageWriting::cached) {
    put(head);
    for (const PageRun& run : file.runs) {
      const uint64_t length = std::min(run.page_count * kPageBytes, size_bytes - run.address);
      put(chunk_head(run.address, length));
      placed.push_back({run.address, image_bytes});
      image_bytes += length;
    }
  }

  void put(const std::string& head) {
    output.write(image_bytes, reinterpret_cast<const unsigned char*>(head.data()), head.size(), 0);
    image_bytes += head.size();
  }

  // `bytes`: of all windows of the piece.
  void write(const PagePiece& piece, const unsigned char* bytes) {
    for (const iovec& window : piece.windows) {
      const uint64_t address = reinterpret_cast<uint64_t>(window.iov_base);
      const auto after = std::upper_bound(placed.begin(), placed.end(), address,
                                          [](uint64_t wanted, const Placed& run) { return wanted < run.address; });
      const Placed& run = *(after - 1);
      output.write(run.image_offset + address - run.address, bytes,
                   std::min<uint64_t>(window.iov_len, size_bytes - address), 0);
      bytes += window.iov_len;
    }
  }

  uint64_t size_bytes;  // of the file
  uint64_t image_bytes = 0;
  std::vector<Placed> placed;  // in the order of runs
  PageFile output;
};

DeletedFilesCapture::DeletedFilesCapture(CaptureContext& context, int images_directory, Progress& progress,
                                         uint64_t shared_memory_device)
    : context_(context),
      images_directory_(images_directory),
      progress_(progress),
      shared_memory_device_(shared_memory_device) {}

DeletedFilesCapture::~DeletedFilesCapture() {
  for (const std::string& name : names_) ::unlinkat(images_directory_, name.c_str(), 0);
}

void DeletedFilesCapture::scan() {
  STASIS_CONTEXT("looking for deleted files");
  find_open();
  find_mapped();
  find_executables();
  if (!is_wanted()) return;
  parallel_for(files_.size(), kMaximalWorkers, [&](size_t index, bool in_caller) {
    if (in_caller) context_.check_abort();
    STASIS_CONTEXT("finding data of deleted files");
    File& file = *files_[index];
    file.runs = find_data_runs(file.file.borrow(), file.stat.stx_size);
  });
}

void DeletedFilesCapture::find_open() {
  std::map<pid_t, const ProcDir*> directories;
  for (const auto& process : context_.tree.processes()) directories.emplace(process->host_pid, &process->proc);
  for (const CapturedOpenFile& file : context_.data.open_files) {
    const CapturedStatx& stat = file.path.stat;
    if ((stat.mode & S_IFMT) != S_IFREG || stat.device == shared_memory_device_) continue;
    const bool on_overlay = stat.filesystem_magic == OVERLAYFS_SUPER_MAGIC;
    if ((stat.link_count > 0 && !on_overlay) || known_.contains({stat.device, stat.inode})) continue;
    const ProcDir& proc = *directories.at(file.host_pid);
    const std::string name = "fd/" + std::to_string(file.fd);
    // An overlay counts the links of the file of its layer, which has kept its name if that layer is a lower one.
    if (stat.link_count > 0 && !link_of(proc, name).ends_with(kDeleted)) continue;
    STASIS_CONTEXT("opening a deleted file", file.host_pid, file.fd);
    add(proc, name, on_overlay);
  }
}

void DeletedFilesCapture::find_mapped() {
  std::set<std::pair<uint64_t, uint64_t>> seen;  // as maps has them, which may be others than stat(2) tells
  for (size_t i = 0; i < context_.data.tasks.size(); ++i) {
    const CapturedTask& task = context_.data.tasks[i];
    for (const Vma& vma : task.vmas) {
      if (vma.inode == 0 || vma.device == shared_memory_device_ || !vma.name.ends_with(kDeleted)) continue;
      if (!seen.insert({vma.device, vma.inode}).second) continue;
      STASIS_CONTEXT("opening a deleted file", task.host_pid);
      add(context_.tree.processes()[i]->proc, map_files_name(vma.start, vma.end), true);
    }
  }
}

void DeletedFilesCapture::find_executables() {
  for (size_t i = 0; i < context_.data.tasks.size(); ++i) {
    const CapturedPath& exe = context_.data.tasks[i].exe;
    if (!exe.link.ends_with(kDeleted)) continue;
    STASIS_CONTEXT("opening a deleted file", context_.data.tasks[i].host_pid);
    add(context_.tree.processes()[i]->proc, "exe", true);
  }
}

// What cannot be opened or has a name left is passed over: TypeScript misses it, and objects.
void DeletedFilesCapture::add(const ProcDir& proc, const std::string& name, bool known_as_deleted) {
  auto file = std::make_unique<File>();
  sys::Try<UniqueFd> opened = sys::try_openat(proc.borrow(), name.c_str(), O_RDONLY | O_NONBLOCK | O_NOATIME);
  if (!opened.ok()) opened = sys::try_openat(proc.borrow(), name.c_str(), O_RDONLY | O_NONBLOCK);
  if (!opened.ok()) {
    log_line("cannot open the deleted file of /proc/%d/%s: error %d", proc.host_pid(), name.c_str(), opened.error);
    return;
  }
  file->file = std::move(opened.value);
  const sys::Try<struct statx> stat = sys::try_statx(file->file.borrow(), "", AT_EMPTY_PATH);
  if (!stat.ok()) throw NativeError::from_errno("statx", stat.error).with_pid(proc.host_pid());
  file->stat = stat.value;
  CapturedStatx captured = to_captured(stat.value);
  captured.filesystem_magic = static_cast<uint64_t>(sys::try_fstatfs_type(file->file.borrow()).value);
  const bool on_overlay = captured.filesystem_magic == OVERLAYFS_SUPER_MAGIC;
  if ((captured.mode & S_IFMT) != S_IFREG || is_kernel_file_system(captured.filesystem_magic)) return;
  if (captured.link_count > 0 && !(known_as_deleted && on_overlay)) return;
  if (!known_.insert({captured.device, captured.inode}).second) return;
  context_.data.deleted_files.push_back(captured);
  files_.push_back(std::move(file));
}

bool DeletedFilesCapture::is_wanted() const { return context_.request.write_pages && !context_.request.pre_dump; }

uint64_t DeletedFilesCapture::bytes_to_save() const {
  uint64_t total = 0;
  for (const auto& file : files_) total += run_pages(file->runs) * kPageBytes;
  return total;
}

void DeletedFilesCapture::save(SharedMemoryCopies& copies, uint64_t other_bytes) {
  if (files_.empty() || !is_wanted()) return;
  const uint64_t total = bytes_to_save();
  if (!has_room_for_copies(context_, total, other_bytes)) {
    log_line("%llu bytes of deleted files are written inside the window: there is no room for a copy",
             static_cast<unsigned long long>(total));
    return write();
  }
  std::vector<CopyOrder> orders;
  for (const auto& file : files_) {
    const uint64_t length = run_pages(file->runs) * kPageBytes;
    if (length == 0) continue;
    file->copy = std::make_unique<CopiedObject>(length, copies.take(length));
    orders.push_back({file->file.borrow(), &file->runs, file->copy.get()});
  }
  copy_objects(orders, context_.check_abort);
}

std::string DeletedFilesCapture::head_of(const File& file) const {
  const CapturedTask& root = context_.data.tasks.front();
  std::string message;
  {
    protozero::pbf_writer entry(message);
    entry.add_uint32(kUid, inside_id(root.uid_map, file.stat.stx_uid));
    entry.add_uint32(kGid, inside_id(root.gid_map, file.stat.stx_gid));
    entry.add_uint32(kMode, file.stat.stx_mode);
    entry.add_uint32(kDevice, static_cast<uint32_t>(to_captured(file.stat).device));
    entry.add_uint64(kInode, file.stat.stx_ino);
    put_time(entry, kAccessTime, file.stat.stx_atime);
    put_time(entry, kModifyTime, file.stat.stx_mtime);
    entry.add_bool(kChunks, true);
    entry.add_uint64(kSize, file.stat.stx_size);
  }
  std::string head;
  append_u32(head, kImageMagic);
  append_u32(head, kGhostFileMagic);
  append_message(head, message);
  return head;
}

void DeletedFilesCapture::write() {
  if (files_.empty() || !is_wanted() || std::exchange(is_written_, true)) return;
  struct Job {
    const PageSource* from;
    Image* to;
    PagePiece piece;
  };
  std::vector<std::unique_ptr<PageSource>> originals;
  std::vector<std::unique_ptr<Image>> images;
  std::vector<Job> jobs;
  for (size_t i = 0; i < files_.size(); ++i) {
    STASIS_CONTEXT("creating the image of a deleted file");
    const File& file = *files_[i];
    char name[48];
    std::snprintf(name, sizeof name, "ghost-file-%zx.img", i + 1);
    names_.emplace_back(name);
    images.push_back(std::make_unique<Image>(images_directory_, name, file, head_of(file)));
    const PageSource* source = file.copy.get();
    if (!source) source = originals.emplace_back(std::make_unique<ObjectContent>(file.file.borrow())).get();
    for (PagePiece& piece : cut_into_pieces(file.runs)) jobs.push_back({source, images.back().get(), std::move(piece)});
  }
  progress_.expect(bytes_to_save());
  parallel_for(jobs.size(), kMaximalWorkers, [&](size_t number, bool in_caller) {
    static thread_local sys::Mapping buffer;
    if (!buffer.valid()) buffer = sys::mmap(0, kPieceBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    STASIS_CONTEXT("writing deleted files");
    if (in_caller) {
      context_.check_abort();
      progress_.tell();
    }
    const Job& job = jobs[number];
    job.to->write(job.piece, job.from->read(job.piece, buffer.data()));
    progress_.add(job.piece.length_bytes);
  });
  for (const auto& image : images)
    images_.push_back(image->output.finish(image->image_bytes, kMaximalWorkers, context_.check_abort));
}

}  // namespace stasis
