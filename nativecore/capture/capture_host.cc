#include "capture/capture_host.h"

#include <cpuid.h>
#include <fcntl.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>

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

std::vector<CapturedNamespaceId> namespace_ids(int proc_directory) {
  std::vector<CapturedNamespaceId> ids;
  for (const char* kind :
       {"cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts"}) {
    char name[64];
    std::snprintf(name, sizeof name, "ns/%s", kind);
    const sys::Try<struct statx> stat = sys::try_statx(proc_directory, name, 0);
    if (!stat.ok()) continue;  // a kernel without this kind
    const CapturedStatx captured = to_captured(stat.value);
    ids.push_back({kind, captured.inode, captured.device});
  }
  return ids;
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
