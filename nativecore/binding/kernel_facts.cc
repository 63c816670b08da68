// What the plan compiler must know of this kernel, measured on this process:
// the vdso, userfaultfd, the size of the extended state.
#include <cpuid.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/kcmp.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "base/unique_fd.h"
#include "binding/module.h"

namespace stasis::binding {
namespace {

struct VdsoArea {
  uint64_t start = 0;  // of the first of [vvar], [vvar_vclock], [vdso]; the kernel maps them as one span
  uint64_t end = 0;
  uint64_t vdso = 0;
  uint64_t vdso_end = 0;
};

VdsoArea find_vdso() {
  VdsoArea area;
  FILE* maps = std::fopen("/proc/self/maps", "re");
  if (maps == nullptr) return area;
  char line[512];
  while (std::fgets(line, sizeof line, maps) != nullptr) {
    bool vdso = std::strstr(line, "[vdso]") != nullptr;
    if (!vdso && std::strstr(line, "[vvar") == nullptr) continue;
    char* rest = nullptr;
    uint64_t start = std::strtoull(line, &rest, 16);
    uint64_t end = std::strtoull(rest + 1, nullptr, 16);
    if (area.end != start) area.start = start;
    area.end = end;
    if (vdso) {
      area.vdso = start;
      area.vdso_end = end;
    }
  }
  std::fclose(maps);
  return area;
}

// Whether a task with our privileges may use userfaultfd for kernel-mode
// faults too (vm.unprivileged_userfaultfd, CAP_SYS_PTRACE, seccomp).
bool has_userfaultfd() {
  UniqueFd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (fd.borrow() < 0) return false;
  uffdio_api api{};
  api.api = UFFD_API;
  return ::ioctl(fd.borrow(), UFFDIO_API, &api) == 0;
}

// CPUID 0xD, subleaf 0, EBX: bytes for the features that XCR0 enables now.
uint32_t xsave_size_bytes() {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(0xD, 0, &eax, &ebx, &ecx, &edx) != 0 ? ebx : 0;
}

// Linux 6.7: struct pm_scan_arg is 96 bytes, its first member is its size. Older kernel headers lack both.
bool has_pagemap_scan() {
  UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!pagemap.valid()) return false;
  uint64_t argument[12] = {sizeof argument};  // an empty range: nothing is scanned
  return ::ioctl(pagemap.borrow(), _IOC(_IOC_READ | _IOC_WRITE, 'f', 16, sizeof argument), argument) == 0;
}

// XCR0: the parts of the extended state that the kernel saves. OSXSAVE tells whether XGETBV may be asked.
uint64_t extended_features() {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & bit_OSXSAVE) == 0) return 0;
  uint32_t low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux 6.15: PR_TIMER_CREATE_RESTORE_IDS with "get" changes nothing.
bool can_restore_timer_ids() { return ::prctl(77, 2, 0, 0, 0) >= 0; }

bool has_kcmp() { return ::syscall(SYS_kcmp, ::getpid(), ::getpid(), KCMP_FILES, 0, 0) == 0; }

// Any answer but ENOSYS means that the call is there.
bool has_call(long number) { return ::syscall(number, -1, 0, 0) >= 0 || errno != ENOSYS; }

}  // namespace

// getKernelFacts() -> { vdsoSpanBytes, vdsoOffsetBytes, vdso: Buffer, userfaultfd, xsaveSizeBytes, pageSize,
// pagemapScan, kcmp, pidfdGetfd, clone3, xfeatures: bigint, timerRestoreIds, rlimits: bigint[] (soft and hard of each)
// }
Napi::Value get_kernel_facts(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  VdsoArea area = find_vdso();
  Napi::Object facts = Napi::Object::New(env);
  facts.Set("vdsoSpanBytes", Napi::Number::New(env, static_cast<double>(area.end - area.start)));
  facts.Set("vdsoOffsetBytes", Napi::Number::New(env, static_cast<double>(area.vdso - area.start)));
  facts.Set("vdso",
            Napi::Buffer<uint8_t>::Copy(env, reinterpret_cast<const uint8_t*>(area.vdso), area.vdso_end - area.vdso));
  facts.Set("userfaultfd", Napi::Boolean::New(env, has_userfaultfd()));
  facts.Set("xsaveSizeBytes", Napi::Number::New(env, xsave_size_bytes()));
  facts.Set("pagemapScan", Napi::Boolean::New(env, has_pagemap_scan()));
  facts.Set("kcmp", Napi::Boolean::New(env, has_kcmp()));
  facts.Set("pidfdGetfd", Napi::Boolean::New(env, has_call(SYS_pidfd_getfd)));
  facts.Set("clone3", Napi::Boolean::New(env, has_call(SYS_clone3)));
  facts.Set("pageSize", Napi::Number::New(env, static_cast<double>(::sysconf(_SC_PAGESIZE))));
  facts.Set("xfeatures", Napi::BigInt::New(env, extended_features()));
  facts.Set("timerRestoreIds", Napi::Boolean::New(env, can_restore_timer_ids()));
  Napi::Array limits = Napi::Array::New(env);
  for (uint32_t resource = 0; resource < RLIM_NLIMITS; ++resource) {
    rlimit limit{};
    ::getrlimit(static_cast<__rlimit_resource>(resource), &limit);
    limits.Set(2 * resource, Napi::BigInt::New(env, static_cast<uint64_t>(limit.rlim_cur)));
    limits.Set(2 * resource + 1, Napi::BigInt::New(env, static_cast<uint64_t>(limit.rlim_max)));
  }
  facts.Set("rlimits", limits);
  return facts;
}

}  // namespace stasis::binding
