#include "capture/capture_host.h"

#include <cpuid.h>
#include <fcntl.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "base/sys.h"
#include "capture/path_facts.h"

namespace stasis {
namespace {

uint64_t clock_ns(clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace

// From the links' texts ("net:[4026531840]"): following them costs twice as much. All are on one file system.
std::vector<CapturedNamespaceId> namespace_ids(int proc_directory) {
  static const uint64_t device = stat_of(AT_FDCWD, "/proc/self/ns/mnt").device;
  std::vector<CapturedNamespaceId> ids;
  for (const char* kind :
       {"cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts"}) {
    char name[64];
    std::snprintf(name, sizeof name, "ns/%s", kind);
    const sys::Try<std::string> link = sys::try_readlinkat(proc_directory, name);
    if (!link.ok()) continue;  // a kernel without this kind
    const size_t number = link.value.find('[');
    if (number == std::string::npos) continue;
    ids.push_back({kind, std::strtoull(link.value.c_str() + number + 1, nullptr, 10), device});
  }
  return ids;
}

uint64_t namespace_inode(const std::vector<CapturedNamespaceId>& ids, std::string_view kind) {
  for (const CapturedNamespaceId& id : ids) {
    if (id.kind == kind) return id.inode;
  }
  return 0;
}

void capture_clocks(CapturedHost& host) {
  host.monotonic_ns = clock_ns(CLOCK_MONOTONIC);
  host.boottime_ns = clock_ns(CLOCK_BOOTTIME);
  host.realtime_ns = clock_ns(CLOCK_REALTIME);
}

void capture_host_before_freeze(CapturedHost& host) {
  utsname names{};
  if (::uname(&names) == 0) host.utsname_release = names.release;
  host.boot_id = sys::try_read_file(AT_FDCWD, "/proc/sys/kernel/random/boot_id").value;
  while (!host.boot_id.empty() && host.boot_id.back() == '\n') host.boot_id.pop_back();
  host.page_size = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  host.clock_ticks = static_cast<uint32_t>(::sysconf(_SC_CLK_TCK));
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(0xd, 0, &eax, &ebx, &ecx, &edx)) {
    host.xsave_size_bytes = ebx;
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    host.xfeatures = static_cast<uint64_t>(high) << 32 | low;
  }
  const UniqueFd own = sys::openat(AT_FDCWD, "/proc/self", O_RDONLY | O_DIRECTORY);
  host.own_namespaces = namespace_ids(own.borrow());
  host.own_cgroup = sys::try_read_file(own.borrow(), "cgroup").value;
}

}  // namespace stasis
