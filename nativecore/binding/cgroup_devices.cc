// Cgroup v2 device control: a BPF program is loaded and attached. The program
// is made in TypeScript (runtime-shim/container/device-program.ts).
#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "binding/module.h"

namespace stasis::binding {

// loadCgroupDeviceProgram(instructions) -> fd
Napi::Value load_cgroup_device_program(const Napi::CallbackInfo& info) {
  auto instructions = info[0].As<Napi::Buffer<uint8_t>>();
  static const char kLicence[] = "Apache";
  bpf_attr attributes{};
  attributes.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
  attributes.insns = reinterpret_cast<uint64_t>(instructions.Data());
  attributes.insn_cnt = static_cast<uint32_t>(instructions.ByteLength() / sizeof(bpf_insn));
  attributes.license = reinterpret_cast<uint64_t>(kLicence);
  long fd = ::syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof attributes);
  if (fd < 0) throw_errno(info.Env(), "bpf(BPF_PROG_LOAD)", errno);
  return Napi::Number::New(info.Env(), static_cast<double>(fd));
}

// attachCgroupDeviceProgram(cgroupFd, programFd). BPF_F_ALLOW_MULTI as runc does: further programs may only narrow.
Napi::Value attach_cgroup_device_program(const Napi::CallbackInfo& info) {
  bpf_attr attributes{};
  attributes.target_fd = static_cast<uint32_t>(info[0].As<Napi::Number>().Int32Value());
  attributes.attach_bpf_fd = static_cast<uint32_t>(info[1].As<Napi::Number>().Int32Value());
  attributes.attach_type = BPF_CGROUP_DEVICE;
  attributes.attach_flags = BPF_F_ALLOW_MULTI;
  if (::syscall(SYS_bpf, BPF_PROG_ATTACH, &attributes, sizeof attributes) != 0)
    throw_errno(info.Env(), "bpf(BPF_PROG_ATTACH)", errno);
  return info.Env().Undefined();
}

}  // namespace stasis::binding
