#include "capture/encode_capture.h"

#include <algorithm>
#include <protozero/pbf_reader.hpp>
#include <protozero/pbf_writer.hpp>

#include "base/connection_lock.h"
#include "base/native_error.h"
#include "base/page.h"

namespace stasis {
namespace {

using Writer = protozero::pbf_writer;

constexpr uint32_t kCaptureVersion = 1;

// proto3: a scalar that is zero and bytes that are empty are not sent.
void put(Writer& message, uint32_t field, uint64_t value) {
  if (value) message.add_uint64(field, value);
}
void put_signed(Writer& message, uint32_t field, int64_t value) {
  if (value) message.add_int64(field, value);
}
void put(Writer& message, uint32_t field, const std::string& value) {
  if (!value.empty()) message.add_bytes(field, value);
}
// Elements of a repeated field are sent even when empty: their position counts.
void put_all(Writer& message, uint32_t field, const std::vector<std::string>& values) {
  for (const std::string& value : values) message.add_bytes(field, value);
}

void put_timings(Writer& message, uint32_t field, const std::vector<TimedPhase>& phases) {
  for (const TimedPhase& phase : phases) {
    Writer timing(message, field);
    timing.add_string(1, phase.phase);
    put(timing, 2, phase.start_ns);
    put(timing, 3, phase.end_ns);
  }
}

void put_runs(Writer& message, uint32_t field, const std::vector<PageRun>& runs) {
  for (const PageRun& run : runs) {
    Writer range(message, field);
    put(range, 1, run.address);
    put(range, 2, run.page_count);
  }
}

void put_namespace_ids(Writer& message, uint32_t field, const std::vector<CapturedNamespaceId>& ids) {
  for (const CapturedNamespaceId& id : ids) {
    Writer entry(message, field);
    entry.add_string(1, id.kind);
    put(entry, 2, id.inode);
    put(entry, 3, id.device);
  }
}

void put_statx(Writer& message, uint32_t field, const CapturedStatx& stat) {
  Writer entry(message, field);
  put(entry, 1, stat.device);
  put(entry, 2, stat.inode);
  put(entry, 3, stat.mode);
  put(entry, 4, stat.uid);
  put(entry, 5, stat.gid);
  put(entry, 6, stat.size_bytes);
  put(entry, 7, stat.rdev);
  put(entry, 8, stat.link_count);
  put(entry, 9, stat.blocks);
  put_signed(entry, 10, stat.mount_id);
  put(entry, 11, stat.filesystem_magic);
  put(entry, 12, stat.mtime_ns);
}

void put_path(Writer& message, uint32_t field, const CapturedPath& path) {
  Writer entry(message, field);
  put(entry, 1, path.link);
  put_statx(entry, 2, path.stat);
  put(entry, 3, path.path_matches);
}

void put_host(Writer& message, uint32_t field, const CapturedHost& host) {
  Writer entry(message, field);
  put(entry, 1, host.utsname_release);
  put(entry, 2, host.boot_id);
  put(entry, 3, host.page_size);
  put(entry, 4, host.clock_ticks);
  put(entry, 5, host.monotonic_ns);
  put(entry, 6, host.boottime_ns);
  put(entry, 7, host.realtime_ns);
  put(entry, 8, host.xfeatures);
  put(entry, 9, host.xsave_size_bytes);
  put_namespace_ids(entry, 10, host.own_namespaces);
  put(entry, 11, host.own_cgroup);
}

void put_thread(Writer& message, uint32_t field, const CapturedThread& thread) {
  Writer entry(message, field);
  put_signed(entry, 1, thread.host_tid);
  for (const int32_t tid : status_numbers(thread.status, "NSpid")) entry.add_int32(2, tid);
  put(entry, 3, thread.status);
  put(entry, 4, thread.comm);
  entry.add_bytes(5, reinterpret_cast<const char*>(&thread.registers), sizeof thread.registers);
  put(entry, 6, thread.xstate);
  put(entry, 7, thread.signal_mask);
  put_all(entry, 8, thread.pending_signals);
  put(entry, 9, thread.rseq.address);
  put(entry, 10, thread.rseq.size_bytes);
  put(entry, 11, thread.rseq.signature);
  put(entry, 12, thread.rseq.flags);
  put(entry, 13, thread.rseq.critical_section);
  put(entry, 14, thread.robust_list_head);
  put(entry, 15, thread.robust_list_length_bytes);
  put(entry, 16, thread.sigaltstack);
  put(entry, 17, thread.tid_address);
  put(entry, 18, thread.parent_death_signal);
  put(entry, 19, thread.securebits);
  put(entry, 20, thread.scheduling);
  put(entry, 21, thread.affinity);
  for (const uint32_t index : thread.seccomp_filters) entry.add_uint32(22, index);
  put(entry, 23, thread.timer_slack_ns);
  put(entry, 24, thread.security_label);
  put(entry, 25, thread.cgroup);
  put(entry, 26, thread.io_priority);
}

void put_task(Writer& message, uint32_t field, const CapturedTask& task) {
  Writer entry(message, field);
  put_signed(entry, 1, task.host_pid);
  put_signed(entry, 2, task.parent_host_pid);
  for (const int32_t pid : status_numbers(task.status, "NSpid")) entry.add_int32(3, pid);
  put(entry, 4, task.zombie);
  put(entry, 5, task.stat);
  put(entry, 6, task.status);
  put(entry, 7, task.auxv);
  put(entry, 8, task.limits);
  put(entry, 9, task.cgroup);
  put(entry, 10, task.timers);
  put(entry, 11, smaps_without_counts(task.smaps));
  put(entry, 12, task.oom_score_adj);
  put(entry, 13, task.loginuid);
  put(entry, 14, task.personality);
  if (!task.zombie) {
    put_path(entry, 15, task.exe);
    put_path(entry, 16, task.cwd);
    put_path(entry, 17, task.root);
  }
  put_namespace_ids(entry, 18, task.namespaces);
  for (const CapturedMappedFile& file : task.mapped_files) {
    Writer mapped(entry, 19);
    put(mapped, 1, file.start);
    put(mapped, 2, file.path.link);
    put_statx(mapped, 3, file.path.stat);
    put(mapped, 4, file.link_mode);
    put(mapped, 5, file.path.path_matches);
  }
  for (const CapturedFd& fd : task.fds) {
    Writer descriptor(entry, 20);
    // Sent even when zero: the writer drops an empty message, and descriptor 0 of open file 0 would be one.
    descriptor.add_int32(1, fd.fd);
    put(descriptor, 2, fd.open_file);
    put(descriptor, 3, fd.close_on_exec);
  }
  put_signed(entry, 21, task.fd_table_host_pid);
  put(entry, 22, task.shares_vm);
  put(entry, 23, task.shares_fs);
  put(entry, 24, task.shares_sighand);
  for (const CapturedThread& thread : task.threads) put_thread(entry, 25, thread);
  put_all(entry, 26, task.shared_pending_signals);
  put_all(entry, 27, task.sigactions);
  put_all(entry, 28, task.itimers);
  for (const CapturedPosixTimer& timer : task.posix_timers) {
    Writer posix_timer(entry, 29);
    put_signed(posix_timer, 1, timer.id);
    put(posix_timer, 2, timer.value);
    put(posix_timer, 3, timer.overrun);
  }
  put(entry, 30, task.dumpable);
  put(entry, 31, task.child_subreaper);
  put(entry, 32, task.thp_disabled);
  put(entry, 33, task.membarrier_registrations);
  put(entry, 34, task.program_break);
  put_all(entry, 36, task.rlimits);
  put(entry, 37, task.stopped);
  put(entry, 38, task.stop_signal);
  put(entry, 39, task.vdso_start);
  put(entry, 41, task.compat);
  put(entry, 44, task.uid_map);
  put(entry, 45, task.gid_map);
  put(entry, 46, task.setgroups);
  put(entry, 47, task.timens_offsets);
}

void put_connection(Writer& message, uint32_t field, const CapturedConnection& connection) {
  Writer entry(message, field);
  put(entry, 1, connection.receive_sequence);
  put(entry, 2, connection.receive_queue);
  put(entry, 3, connection.send_sequence);
  put(entry, 4, connection.send_queue);
  put(entry, 5, connection.unsent_bytes);
  put(entry, 6, connection.timestamp);
  put(entry, 7, connection.window);
  put(entry, 8, connection.mss_clamp);
  put_signed(entry, 9, connection.output_bytes);
}

void put_socket(Writer& message, uint32_t field, const CapturedSocket& socket) {
  Writer entry(message, field);
  put(entry, 1, socket.inode);
  put_signed(entry, 2, socket.family);
  put_signed(entry, 3, socket.type);
  put_signed(entry, 4, socket.protocol);
  put(entry, 5, socket.local_address);
  put(entry, 6, socket.peer_address);
  for (const CapturedSocketOption& option : socket.options) {
    Writer value(entry, 7);
    put_signed(value, 1, option.level);
    put_signed(value, 2, option.name);
    put(value, 3, option.value);
  }
  put_all(entry, 8, socket.queue);
  put(entry, 9, socket.queue_has_rights);
  put(entry, 10, socket.net_namespace);
  put_signed(entry, 11, socket.input_bytes);
  put_signed(entry, 12, socket.output_bytes);
  put(entry, 13, socket.tcp_info);
  if (!socket.bound_file.link.empty()) put_path(entry, 14, socket.bound_file);
  if (socket.connection.present) put_connection(entry, 15, socket.connection);
}

void put_open_file(Writer& message, uint32_t field, const CapturedOpenFile& file) {
  Writer entry(message, field);
  put_signed(entry, 1, file.host_pid);
  put_signed(entry, 2, file.fd);
  put(entry, 3, file.path.link);
  put(entry, 4, file.fdinfo);
  put_statx(entry, 5, file.path.stat);
  put(entry, 6, file.path.path_matches);
  put_signed(entry, 7, file.status_flags);
  put_signed(entry, 8, file.signal);
  put(entry, 9, file.owner);
  for (const uint32_t uid : file.owner_uids) entry.add_uint32(10, uid);
  if (file.socket.present) put_socket(entry, 11, file.socket);
  if (file.terminal.present) {
    Writer terminal(entry, 12);
    put(terminal, 1, file.terminal.termios);
    put(terminal, 2, file.terminal.window_size);
    put_signed(terminal, 3, file.terminal.session);
    put_signed(terminal, 4, file.terminal.foreground_group);
    put_signed(terminal, 5, file.terminal.pty_number);
  }
  for (const CapturedWatchedFile& watched : file.watched_files) {
    Writer record(entry, 20);
    put_signed(record, 1, watched.watch);
    put_path(record, 2, watched.path);
  }
  put(entry, 21, file.unread_bytes);
}

void put_mount_namespace(Writer& message, uint32_t field, const CapturedMountNamespace& mounts) {
  Writer entry(message, field);
  put(entry, 1, mounts.inode);
  put_signed(entry, 2, mounts.host_pid);
  put(entry, 3, mounts.mountinfo);
  for (const CapturedTmpfs& tmpfs : mounts.tmpfs) {
    Writer content(entry, 4);
    put(content, 1, tmpfs.mount_point);
    put(content, 2, tmpfs.device);
    for (const CapturedTmpfsEntry& file : tmpfs.entries) {
      Writer record(content, 3);
      put(record, 1, file.path);
      put_statx(record, 2, file.stat);
      put(record, 3, file.content);
      put(record, 4, file.link_target);
      put(record, 5, file.hard_link_to);
      for (const CapturedAttribute& attribute : file.attributes) {
        Writer pair(record, 6);
        put(pair, 1, attribute.name);
        put(pair, 2, attribute.value);
      }
    }
  }
}

void put_net_namespace(Writer& message, uint32_t field, const CapturedNetNamespace& net) {
  Writer entry(message, field);
  put(entry, 1, net.inode);
  put_all(entry, 2, net.unix_sockets);
  put_all(entry, 5, net.links);
}

void put_ipc_namespace(Writer& message, uint32_t field, const CapturedIpcNamespace& ipc) {
  Writer entry(message, field);
  put(entry, 1, ipc.inode);
  put(entry, 2, ipc.sysvipc_shm);
  put(entry, 3, ipc.sysvipc_msg);
  put(entry, 4, ipc.sysvipc_sem);
  for (const CapturedSysctl& sysctl : ipc.sysctls) {
    Writer pair(entry, 5);
    pair.add_string(1, sysctl.name);
    put(pair, 2, sysctl.value);
  }
  for (const CapturedSemaphoreSet& set : ipc.semaphores) {
    Writer semaphores(entry, 6);
    put_signed(semaphores, 1, set.id);
    put(semaphores, 2, set.values);
  }
}

// More are no honest chain's, and compared with none (runtime-shim sends none then).
constexpr size_t kMaximalParentRuns = 1 << 20;
constexpr size_t kMaximalParentFiles = 1 << 16;
constexpr uint64_t kAddressEnd = uint64_t{1} << 56;  // with five levels of page tables

ParentRun decode_parent_run(protozero::pbf_reader message) {
  ParentRun run;
  while (message.next()) {
    switch (message.tag()) {
      case 1: run.address = message.get_uint64(); break;
      case 2: run.page_count = message.get_uint64(); break;
      case 3: run.file = message.get_uint32(); break;
      case 4: run.offset_bytes = message.get_uint64(); break;
      default: message.skip();
    }
  }
  return run;
}

ParentTask decode_parent_task(protozero::pbf_reader message) {
  ParentTask task;
  while (message.next()) {
    switch (message.tag()) {
      case 1: task.ns_pid = message.get_int32(); break;
      case 2: task.runs.push_back(decode_parent_run(message.get_message())); break;
      default: message.skip();
    }
  }
  return task;
}

ParentObject decode_parent_object(protozero::pbf_reader message) {
  ParentObject object;
  while (message.next()) {
    switch (message.tag()) {
      case 1: object.number = message.get_uint64(); break;
      case 2: object.runs.push_back(decode_parent_run(message.get_message())); break;
      default: message.skip();
    }
  }
  return object;
}

bool is_page_file_name(const std::string& name) {
  return !name.empty() && name[0] != '/' && ("/" + name + "/").find("/../") == std::string::npos;
}

void validate_parent(const CaptureRequest& request) {
  size_t count = 0;
  bool good = request.parent_files.size() <= kMaximalParentFiles &&
              std::all_of(request.parent_files.begin(), request.parent_files.end(), is_page_file_name);
  const auto validate_runs = [&](const std::vector<ParentRun>& runs) {
    uint64_t end = 0;
    for (const ParentRun& run : runs) {
      good = good && ++count <= kMaximalParentRuns && run.file < request.parent_files.size() &&
             run.address % kPageBytes == 0 && run.address >= end && run.address < kAddressEnd && run.page_count > 0 &&
             run.page_count <= (kAddressEnd - run.address) / kPageBytes && run.offset_bytes < kAddressEnd;
      end = run.address + run.page_count * kPageBytes;
    }
  };
  for (const ParentTask& task : request.parent_tasks) validate_runs(task.runs);
  for (const ParentObject& object : request.parent_objects) validate_runs(object.runs);
  if (!good) throw NativeError("bad_request", "CaptureRequest with a parent that is none");
}

CaptureRequest::Connections decode_connections(int32_t value) {
  if (value < 0 || value > static_cast<int32_t>(CaptureRequest::Connections::none))
    throw NativeError("bad_request", "CaptureRequest with connections of unknown kind");
  return static_cast<CaptureRequest::Connections>(value);
}

}  // namespace

CaptureRequest decode_capture_request(std::string_view encoded) {
  CaptureRequest request;
  try {
    protozero::pbf_reader message(encoded.data(), encoded.size());
    while (message.next()) {
      switch (message.tag()) {
        case 1: request.version = message.get_uint32(); break;
        case 2: request.root_host_pid = message.get_int32(); break;
        case 3: request.root_start_ticks = message.get_uint64(); break;
        case 4: request.leave_running = message.get_bool(); break;
        case 5: request.deadline_ms = message.get_uint32(); break;
        case 6: request.cgroup_directories.push_back(message.get_string()); break;
        case 7: request.freezer_file = message.get_string(); break;
        case 8: request.found_paused = message.get_bool(); break;
        case 9: request.tmpfs_mount_points.push_back(message.get_string()); break;
        case 10: request.tmpfs_limit_bytes = message.get_uint64(); break;
        case 11: request.write_pages = message.get_bool(); break;
        case 12: request.first_pages_id = message.get_uint32(); break;
        case 13:
          // Repeated scalars come packed from proto3 writers, single from others.
          if (message.wire_type() == protozero::pbf_wire_type::length_delimited) {
            for (const int32_t step : message.get_packed_int32()) request.stop_before_step.push_back(step);
          } else {
            request.stop_before_step.push_back(message.get_int32());
          }
          break;
        case 14: request.copy_on_write_bytes = message.get_uint64(); break;
        case 15: request.tracking_token = message.get_string(); break;
        case 16: request.parent_token = message.get_string(); break;
        case 17: request.page_compression = message.get_string(); break;
        case 18: request.page_compression_level = message.get_int32(); break;
        case 19: request.parent_files.push_back(message.get_string()); break;
        case 20: request.parent_tasks.push_back(decode_parent_task(message.get_message())); break;
        case 21: request.parent_objects.push_back(decode_parent_object(message.get_message())); break;
        case 22: request.pre_dump = message.get_bool(); break;
        case 23: request.connections = decode_connections(message.get_enum()); break;
        case 24: request.connection_lock = message.get_string(); break;
        case 25: request.page_writing = message.get_uint32(); break;
        default: message.skip();
      }
    }
  } catch (const protozero::exception&) {
    throw NativeError("bad_request", "decoding CaptureRequest");
  }
  if (request.version != kCaptureVersion) {
    throw NativeError("bad_request", "CaptureRequest of version " + std::to_string(request.version) + ", wanted 1");
  }
  if (request.root_host_pid <= 0 || request.deadline_ms == 0) {
    throw NativeError("bad_request", "CaptureRequest without root_host_pid or deadline_ms");
  }
  if (!request.connection_lock.empty() && !is_lock_name(request.connection_lock))
    throw NativeError("bad_request", "CaptureRequest with the name of a lock that is none");
  if (request.page_writing > static_cast<uint32_t>(PageWriting::direct))
    throw NativeError("bad_request", "CaptureRequest with an unknown page_writing");
  validate_parent(request);
  return request;
}

std::string encode_capture(const CaptureData& capture, const std::vector<TimedPhase>& timings,
                           const std::vector<std::string>& log) {
  std::string encoded;
  size_t expected_bytes = 65536;
  for (const CapturedTask& task : capture.tasks) expected_bytes += task.smaps.size() / 4 + task.threads.size() * 8192;
  encoded.reserve(expected_bytes);
  Writer message(encoded);
  message.add_uint32(1, kCaptureVersion);
  put_host(message, 2, capture.host);
  for (const CapturedTask& task : capture.tasks) put_task(message, 3, task);
  for (const CapturedOpenFile& file : capture.open_files) put_open_file(message, 4, file);
  for (const CapturedPipe& pipe : capture.pipes) {
    Writer entry(message, 5);
    put(entry, 1, pipe.inode);
    put(entry, 2, pipe.capacity_bytes);
    put(entry, 3, pipe.content);
    put(entry, 4, pipe.is_fifo);
  }
  for (const CapturedMountNamespace& mounts : capture.mount_namespaces) put_mount_namespace(message, 6, mounts);
  for (const CapturedNetNamespace& net : capture.net_namespaces) put_net_namespace(message, 7, net);
  for (const CapturedUtsNamespace& uts : capture.uts_namespaces) {
    Writer entry(message, 8);
    put(entry, 1, uts.inode);
    put(entry, 2, uts.nodename);
    put(entry, 3, uts.domainname);
  }
  for (const CapturedIpcNamespace& ipc : capture.ipc_namespaces) put_ipc_namespace(message, 9, ipc);
  for (const CapturedStranger& stranger : capture.strangers) {
    Writer entry(message, 10);
    put_signed(entry, 1, stranger.host_pid);
    put(entry, 2, stranger.comm);
    put(entry, 3, stranger.cgroup);
    put(entry, 4, stranger.ns_pid);
  }
  for (const SeccompProgram& filter : capture.seccomp_filters) {
    Writer entry(message, 11);
    put(entry, 1, filter.instructions);
    put(entry, 2, filter.flags);
  }
  put(message, 12, capture.proc_locks);
  put_timings(message, 13, timings);
  for (const std::string& line : log) message.add_string(14, line);
  for (const std::string& note : capture.notes) message.add_string(15, note);
  put(message, 16, capture.was_paused);
  for (const std::string& remark : capture.remarks) message.add_string(17, remark);
  for (const CapturedSharedMemory& object : capture.shared_memory) {
    Writer entry(message, 20);
    put(entry, 1, object.link);
    put_statx(entry, 2, object.stat);
    put(entry, 3, object.seals);
  }
  for (const CapturedStatx& file : capture.deleted_files) put_statx(message, 21, file);
  return encoded;
}

std::string encode_thawed(const std::vector<TimedPhase>& timings, bool tracked) {
  std::string encoded;
  Writer message(encoded);
  put_timings(message, 1, timings);
  put(message, 2, uint64_t{tracked});
  return encoded;
}

std::string encode_page_map(const PageMapData& pages, const std::vector<SharedPages>& shared,
                            const std::vector<TimedPhase>& timings, const std::vector<WrittenPageFile>& files) {
  std::string encoded;
  Writer message(encoded);
  for (const TaskPages& task : pages.tasks) {
    Writer entry(message, 1);
    put_signed(entry, 1, task.host_pid);
    put(entry, 2, task.pages_id);
    put_runs(entry, 3, task.runs);
    put_runs(entry, 4, task.unchanged_runs);
    put(entry, 5, uint64_t{task.noted});
  }
  for (const SharedPages& object : shared) {
    Writer entry(message, 10);
    put(entry, 1, object.object);
    put(entry, 2, object.pages_id);
    put_runs(entry, 3, object.runs);
    put_runs(entry, 4, object.unchanged_runs);
  }
  for (const WrittenPageFile& file : files) {
    Writer entry(message, 11);
    put(entry, 1, file.name);
    put(entry, 2, file.size_bytes);
    put(entry, 3, file.digest);
    put(entry, 4, uint64_t{file.direct});
  }
  put_timings(message, 2, timings);
  put(message, 3, pages.scanned_pages);
  put(message, 4, pages.skipped_zero_pages);
  put(message, 5, pages.compared_pages);
  return encoded;
}

}  // namespace stasis
