// The raw capture while it grows: the messages of schema/capture.proto as plain
// structures, same names, same order. Turned into bytes by encode_capture.cc.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>
#include <sys/user.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/timing.h"
#include "capture/twin.h"
#include "parasite/infection.h"
#include "parasite/stale_parasite.h"
#include "proc/proc_dir.h"
#include "trace/thread_state.h"

namespace stasis {

// What the parent checkpoint holds of a task.
struct ParentRun {
  uint64_t address = 0;
  uint64_t page_count = 0;
  uint32_t file = 0;  // index in CaptureRequest.parent_files
  uint64_t offset_bytes = 0;
};

struct ParentTask {
  int32_t ns_pid = 0;
  std::vector<ParentRun> runs;  // ascending, without overlaps
};

struct ParentObject {
  uint64_t number = 0;          // of its images
  std::vector<ParentRun> runs;  // the same, by offset in the object
};

struct CaptureRequest {
  uint32_t version = 0;
  int32_t root_host_pid = 0;
  uint64_t root_start_ticks = 0;
  bool leave_running = false;
  uint32_t deadline_ms = 0;
  std::vector<std::string> cgroup_directories;
  std::string freezer_file;
  bool found_paused = false;
  std::vector<std::string> tmpfs_mount_points;
  uint64_t tmpfs_limit_bytes = 0;
  bool write_pages = false;
  uint32_t first_pages_id = 0;
  std::vector<int32_t> stop_before_step;
  uint64_t copy_on_write_bytes = 0;
  std::string tracking_token;    // "": changes of memory are of no interest after this capture
  std::string parent_token;      // "": there is no earlier capture to leave pages to
  std::string page_compression;  // "lz4", "zstd", "": none
  int32_t page_compression_level = 0;
  std::vector<std::string> parent_files;  // relative to kParentDescriptor
  std::vector<ParentTask> parent_tasks;
  std::vector<ParentObject> parent_objects;
  bool pre_dump = false;
  enum class Connections { inside, all, none };
  Connections connections = Connections::inside;
  std::string connection_lock;  // "": no table is left behind
  uint32_t page_writing = 0;    // PageWriting
};

struct CapturedNamespaceId {
  std::string kind;
  uint64_t inode = 0;
  uint64_t device = 0;
};

struct CapturedStatx {
  uint64_t device = 0;
  uint64_t inode = 0;
  uint32_t mode = 0;
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint64_t size_bytes = 0;
  uint64_t rdev = 0;
  uint32_t link_count = 0;
  uint64_t blocks = 0;
  int64_t mount_id = -1;
  uint64_t filesystem_magic = 0;
  uint64_t mtime_ns = 0;
};

struct CapturedPath {
  std::string link;
  CapturedStatx stat;
  bool path_matches = false;
};

struct CapturedMappedFile {
  uint64_t start = 0;
  CapturedPath path;
  uint32_t link_mode = 0;
};

struct CapturedThread {
  int32_t host_tid = 0;
  std::string status;
  std::string comm;
  user_regs_struct registers{};
  std::string xstate;
  uint64_t signal_mask = 0;
  std::vector<std::string> pending_signals;
  RseqState rseq;
  uint64_t robust_list_head = 0;
  uint64_t robust_list_length_bytes = 0;
  std::string sigaltstack;
  uint64_t tid_address = 0;
  uint32_t parent_death_signal = 0;
  uint32_t securebits = 0;
  std::string scheduling;
  std::string affinity;
  std::vector<uint32_t> seccomp_filters;
  uint32_t timer_slack_ns = 0;
  std::string security_label;
  std::string cgroup;
  uint32_t io_priority = 0;
};

struct CapturedPosixTimer {
  int32_t id = 0;
  std::string value;
  uint32_t overrun = 0;
};

struct CapturedFd {
  int32_t fd = 0;
  uint32_t open_file = 0;
  bool close_on_exec = false;
};

struct CapturedTask {
  int32_t host_pid = 0;
  int32_t parent_host_pid = 0;
  bool zombie = false;
  std::string stat, status, auxv, limits, cgroup, timers, smaps, oom_score_adj, loginuid, personality;
  CapturedPath exe, cwd, root;
  std::vector<CapturedNamespaceId> namespaces;
  std::vector<CapturedMappedFile> mapped_files;
  std::vector<CapturedFd> fds;
  int32_t fd_table_host_pid = 0;
  bool shares_vm = false, shares_fs = false, shares_sighand = false;
  std::vector<CapturedThread> threads;
  std::vector<std::string> shared_pending_signals;
  std::vector<std::string> sigactions;
  std::vector<std::string> itimers;
  std::vector<CapturedPosixTimer> posix_timers;
  uint32_t dumpable = 0, child_subreaper = 0, thp_disabled = 0, membarrier_registrations = 0;
  uint64_t program_break = 0;
  std::vector<std::string> rlimits;
  bool stopped = false;
  uint32_t stop_signal = 0;
  uint64_t vdso_start = 0;
  bool compat = false;
  std::string uid_map, gid_map, setgroups, timens_offsets;

  // Not part of the message:
  std::vector<Vma> vmas;  // parsed from smaps; until that has been read from maps, or only those that matter
  std::vector<StaleParasite> stale_parasites;
  TwinWish twin_wish;
  std::shared_ptr<Twin> twin;
  uint64_t total_pages = 0;  // of the address space, where a twin is wished for
};

struct CapturedSocketOption {
  int32_t level = 0;
  int32_t name = 0;
  std::string value;
};

struct CapturedConnection {
  bool present = false;
  uint32_t receive_sequence = 0, send_sequence = 0;
  std::string receive_queue, send_queue;
  uint32_t unsent_bytes = 0, timestamp = 0, mss_clamp = 0;
  std::string window;
  int32_t output_bytes = 0;
};

struct CapturedSocket {
  bool present = false;
  uint64_t inode = 0;
  int32_t family = 0, type = 0, protocol = 0;
  std::string local_address, peer_address;
  std::vector<CapturedSocketOption> options;
  std::vector<std::string> queue;
  bool queue_has_rights = false;
  uint64_t net_namespace = 0;
  int32_t input_bytes = 0, output_bytes = 0;
  std::string tcp_info;
  CapturedPath bound_file;  // link empty: not bound to a path
  CapturedConnection connection;
};

struct CapturedTerminal {
  bool present = false;
  std::string termios, window_size;
  int32_t session = 0, foreground_group = 0, pty_number = -1;
};

// What an inotify watch is on, where it was found; without a path it has no name any more.
struct CapturedWatchedFile {
  int32_t watch = 0;
  CapturedPath path;
};

struct CapturedOpenFile {
  int32_t host_pid = 0;
  int32_t fd = 0;
  CapturedPath path;
  std::string fdinfo;
  int32_t status_flags = 0;
  int32_t signal = 0;
  std::string owner;
  std::vector<uint32_t> owner_uids;
  CapturedSocket socket;
  CapturedTerminal terminal;
  std::vector<CapturedWatchedFile> watched_files;
  uint32_t unread_bytes = 0;  // of inotify
};

struct CapturedPipe {
  uint64_t inode = 0;
  uint32_t capacity_bytes = 0;
  std::string content;
  bool is_fifo = false;
};

struct CapturedAttribute {
  std::string name, value;
};

struct CapturedTmpfsEntry {
  std::string path;
  CapturedStatx stat;
  std::string content, link_target, hard_link_to;
  std::vector<CapturedAttribute> attributes;
};

struct CapturedTmpfs {
  std::string mount_point;
  uint64_t device = 0;
  std::vector<CapturedTmpfsEntry> entries;
};

struct CapturedMountNamespace {
  uint64_t inode = 0;
  int32_t host_pid = 0;
  std::string mountinfo;
  std::vector<CapturedTmpfs> tmpfs;
};

struct CapturedNetNamespace {
  uint64_t inode = 0;
  std::vector<std::string> unix_sockets, links;
};

struct CapturedUtsNamespace {
  uint64_t inode = 0;
  std::string nodename, domainname;
};

struct CapturedSysctl {
  std::string name, value;
};

struct CapturedSemaphoreSet {
  int32_t id = 0;
  std::string values;
};

struct CapturedIpcNamespace {
  uint64_t inode = 0;
  std::string sysvipc_shm, sysvipc_msg, sysvipc_sem;
  std::vector<CapturedSysctl> sysctls;
  std::vector<CapturedSemaphoreSet> semaphores;
};

struct CapturedStranger {
  int32_t host_pid = 0;
  std::string comm, cgroup, ns_pid;
};

struct CapturedHost {
  std::string utsname_release, boot_id;
  uint64_t page_size = 0;
  uint32_t clock_ticks = 0;
  uint64_t monotonic_ns = 0, boottime_ns = 0, realtime_ns = 0;
  uint64_t xfeatures = 0;
  uint32_t xsave_size_bytes = 0;
  std::vector<CapturedNamespaceId> own_namespaces;
  std::string own_cgroup;
};

struct CapturedSharedMemory {
  std::string link;
  CapturedStatx stat;
  uint32_t seals = 0;
};

struct CaptureData {
  CapturedHost host;
  std::vector<CapturedTask> tasks;
  std::vector<CapturedOpenFile> open_files;
  std::vector<CapturedPipe> pipes;
  std::vector<CapturedMountNamespace> mount_namespaces;
  std::vector<CapturedNetNamespace> net_namespaces;
  std::vector<CapturedUtsNamespace> uts_namespaces;
  std::vector<CapturedIpcNamespace> ipc_namespaces;
  std::vector<CapturedStranger> strangers;
  std::vector<SeccompProgram> seccomp_filters;
  std::string proc_locks;
  std::vector<std::string> notes;
  std::vector<std::string> remarks;
  std::vector<CapturedSharedMemory> shared_memory;
  std::vector<CapturedStatx> deleted_files;
  bool was_paused = false;
};

struct PageRun {
  uint64_t address = 0;
  uint64_t page_count = 0;
};

struct TaskPages {
  int32_t host_pid = 0;
  uint32_t pages_id = 0;
  std::vector<PageRun> runs;
  std::vector<PageRun> unchanged_runs;  // not written: they are as they were in the parent
  bool noted = false;                   // by the note that was kept
};

struct SharedPages {
  uint32_t object = 0;
  uint32_t pages_id = 0;
  std::vector<PageRun> runs;            // addresses are offsets in the object
  std::vector<PageRun> unchanged_runs;  // not written: they read as in the parent
};

struct PageMapData {
  std::vector<TaskPages> tasks;
  uint64_t scanned_pages = 0;
  uint64_t skipped_zero_pages = 0;
  uint64_t compared_pages = 0;  // with the parent's
};

}  // namespace stasis
