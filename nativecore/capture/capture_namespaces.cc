#include "capture/capture_namespaces.h"

#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <sched.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/utsname.h>

#include <cerrno>
#include <cstdio>
#include <set>
#include <utility>

#include "base/native_error.h"
#include "capture/capture_host.h"
#include "capture/capture_mounts.h"
#include "capture/netlink_dump.h"
#include "capture/path_facts.h"

namespace stasis {
namespace {

constexpr const char* kIpcSysctls[] = {"kernel/auto_msgmni",
                                       "kernel/msgmax",
                                       "kernel/msgmnb",
                                       "kernel/msgmni",
                                       "kernel/sem",
                                       "kernel/shmall",
                                       "kernel/shmmax",
                                       "kernel/shmmni",
                                       "kernel/shm_rmid_forced",
                                       "kernel/msg_next_id",
                                       "kernel/sem_next_id",
                                       "kernel/shm_next_id",
                                       "fs/mqueue/queues_max",
                                       "fs/mqueue/msg_max",
                                       "fs/mqueue/msgsize_max",
                                       "fs/mqueue/msg_default",
                                       "fs/mqueue/msgsize_default"};

CapturedUtsNamespace read_uts(uint64_t inode) {
  utsname names{};
  if (::uname(&names) < 0) throw NativeError::from_errno("uname", errno);
  return {inode, names.nodename, names.domainname};
}

// Of every line of /proc/sysvipc/sem: key, id, mode, number of semaphores, ... One that cannot be read is missing
// afterwards, and TypeScript objects.
std::vector<CapturedSemaphoreSet> read_semaphores(const std::string& table) {
  std::vector<CapturedSemaphoreSet> sets;
  for (size_t at = table.find('\n'); at != std::string::npos && at + 1 < table.size(); at = table.find('\n', at + 1)) {
    int key, id;
    unsigned mode, count;
    if (std::sscanf(table.c_str() + at + 1, "%d %d %o %u", &key, &id, &mode, &count) != 4) continue;
    std::string values(count * sizeof(uint16_t), '\0');
    if (::semctl(id, 0, GETALL, values.data()) < 0) continue;
    sets.push_back({id, std::move(values)});
  }
  return sets;
}

CapturedIpcNamespace read_ipc(uint64_t inode) {
  CapturedIpcNamespace ipc;
  ipc.inode = inode;
  // These show the namespace of whoever opens them.
  ipc.sysvipc_shm = sys::try_read_file(AT_FDCWD, "/proc/sysvipc/shm").value;
  ipc.sysvipc_msg = sys::try_read_file(AT_FDCWD, "/proc/sysvipc/msg").value;
  ipc.sysvipc_sem = sys::try_read_file(AT_FDCWD, "/proc/sysvipc/sem").value;
  ipc.semaphores = read_semaphores(ipc.sysvipc_sem);
  for (const char* name : kIpcSysctls) {
    sys::Try<std::string> value = sys::try_read_file(AT_FDCWD, (std::string("/proc/sys/") + name).c_str());
    if (!value.ok()) continue;  // a kernel without it
    while (!value.value.empty() && value.value.back() == '\n') value.value.pop_back();
    ipc.sysctls.push_back({name, std::move(value.value)});
  }
  return ipc;
}

CapturedNetNamespace read_net(uint64_t inode, bool is_own) {
  CapturedNetNamespace net;
  net.inode = inode;
  unix_diag_req unix_request{};
  unix_request.sdiag_family = AF_UNIX;
  unix_request.udiag_states = ~0u;
  unix_request.udiag_show =
      UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN | UDIAG_SHOW_MEMINFO;
  net.unix_sockets =
      netlink_dump(NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, SOCK_DIAG_BY_FAMILY, &unix_request, sizeof unix_request);
  if (is_own) return net;  // the links of the machine are not the tree's
  const ifinfomsg any_link{};
  net.links = netlink_dump(NETLINK_ROUTE, RTM_GETLINK, RTM_NEWLINK, &any_link, sizeof any_link);
  return net;
}

}  // namespace

NamespaceCapture::NamespaceCapture()
    : thread_([this] {
        told_.acquire();
        try {
          if (request_) run(*request_);
        } catch (...) {
          failure_ = std::current_exception();
        }
      }) {}

void NamespaceCapture::start(const CaptureContext& context) {
  own_ = context.data.host.own_namespaces;
  for (size_t i = 0; i < context.data.tasks.size(); ++i) {
    if (context.data.tasks[i].zombie) continue;
    members_.push_back({context.tree.processes()[i].get(), context.data.tasks[i].namespaces});
  }
  request_ = &context.request;
  told_.release();
}

// Calls read(inode) once inside each namespace of this kind that a task is in.
template <typename Read>
void NamespaceCapture::for_each_namespace(const char* kind, int type, Read read) {
  STASIS_CONTEXT("entering a namespace");
  uint64_t current_inode = namespace_inode(own_, kind);
  std::set<uint64_t> seen;
  for (const Member& member : members_) {
    const uint64_t inode = namespace_inode(member.namespaces, kind);
    if (inode == 0 || !seen.insert(inode).second) continue;
    if (inode != current_inode) {
      const UniqueFd entrance =
          sys::openat(member.process->proc.borrow(), (std::string("ns/") + kind).c_str(), O_RDONLY);
      sys::setns(entrance.borrow(), type);
      current_inode = inode;
    }
    read(inode);
  }
}

NamespaceCapture::~NamespaceCapture() {
  if (!request_) told_.release();
  if (thread_.joinable()) thread_.join();
}

// Mounts last: in another mount namespace our /proc is out of reach.
void NamespaceCapture::run(const CaptureRequest& request) {
  STASIS_CONTEXT("capturing namespaces");
  phases_.enter("beside: uts, ipc");
  // The tree's own ones only: what it has in common with us is the machine's, and no image tells of it.
  for_each_namespace("uts", CLONE_NEWUTS, [&](uint64_t inode) {
    if (inode != namespace_inode(own_, "uts")) found_.uts_namespaces.push_back(read_uts(inode));
  });
  for_each_namespace("ipc", CLONE_NEWIPC, [&](uint64_t inode) {
    if (inode != namespace_inode(own_, "ipc")) found_.ipc_namespaces.push_back(read_ipc(inode));
  });
  phases_.enter("beside: net");
  for_each_namespace("net", CLONE_NEWNET, [&](uint64_t inode) {
    found_.net_namespaces.push_back(read_net(inode, inode == namespace_inode(own_, "net")));
  });
  phases_.enter("beside: mounts");
  std::vector<std::pair<const TracedProcess*, uint64_t>> mounted;
  for (const Member& member : members_) mounted.emplace_back(member.process, namespace_inode(member.namespaces, "mnt"));
  capture_mounts(mounted, namespace_inode(own_, "mnt"), request, found_);
  phases_.finish();
}

void NamespaceCapture::finish(CaptureData& data, PhaseRecorder& phases) {
  thread_.join();
  for (const TimedPhase& phase : phases_.phases()) phases.add(phase.phase, phase.start_ns, phase.end_ns);
  if (failure_) std::rethrow_exception(failure_);
  data.uts_namespaces = std::move(found_.uts_namespaces);
  data.ipc_namespaces = std::move(found_.ipc_namespaces);
  data.net_namespaces = std::move(found_.net_namespaces);
  data.mount_namespaces = std::move(found_.mount_namespaces);
  for (std::string& note : found_.notes) data.notes.push_back(std::move(note));
}

}  // namespace stasis
