#include "parasite/self_return_frame.h"

#include <cpuid.h>

#include <algorithm>
#include <cstring>

#include "base/native_error.h"

namespace stasis {
namespace {

// The kernel's struct rt_sigframe of x86-64, without its siginfo, which
// rt_sigreturn does not look at. The call finds it 8 bytes below the stack pointer.
struct SignalContext {
  uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
  uint64_t di, si, bp, bx, dx, ax, cx, sp, ip, flags;
  uint16_t cs, gs, fs, ss;
  uint64_t err, trapno, oldmask, cr2;
  uint64_t fpstate;
  uint64_t reserved[8];
};
struct UserContext {
  uint64_t flags;
  uint64_t link;
  uint64_t stack_address;
  int32_t stack_flags;
  int32_t padding;
  uint64_t stack_length_bytes;
  SignalContext context;
  uint64_t signal_mask;
};
struct SignalFrame {
  uint64_t return_address;
  UserContext context;
};
static_assert(sizeof(SignalContext) == 256);
static_assert(sizeof(UserContext) == 304);
static_assert(offsetof(SignalFrame, context) == 8);

// struct _fpx_sw_bytes, at byte 464 of the xstate.
struct SoftwareBytes {
  uint32_t magic1;
  uint32_t extended_size;
  uint64_t xfeatures;
  uint32_t xstate_size;
  uint32_t padding[7];
};
static_assert(sizeof(SoftwareBytes) == 48);

constexpr uint64_t kUcFpXstate = 1, kUcSigcontextSs = 2, kUcStrictRestoreSs = 4;
constexpr uint32_t kFpXstateMagic1 = 0x46505853, kFpXstateMagic2 = 0x46505845;
// sigreturn also installs an alternate stack, which we do not know yet; it
// ignores an impossible one and leaves the thread's as it is.
constexpr int32_t kInvalidStackFlags = 7;
constexpr size_t kSoftwareBytesOffset = 464;
constexpr size_t kXstateHeaderOffset = 512;
constexpr size_t kLegacyXstateBytes = 576;  // FXSAVE area and header
constexpr size_t kXstateAlignment = 64;
constexpr uint64_t kXfeatureTileData = 1u << 18;
constexpr int64_t kRestartSys = -512, kRestartNoIntr = -513, kRestartNoHand = -514, kRestartBlock = -516;
constexpr uint64_t kSyscallInstructionBytes = 2;

constexpr size_t align(size_t value, size_t alignment) { return (value + alignment - 1) / alignment * alignment; }

// Where each feature's state ends in the standard format.
struct XstateLayout {
  uint32_t end_bytes[64] = {};
  XstateLayout() {
    for (uint32_t feature = 2; feature < 63; ++feature) {
      uint32_t size = 0, offset = 0, ecx = 0, edx = 0;
      __cpuid_count(0xd, feature, size, offset, ecx, edx);
      if (offset) end_bytes[feature] = offset + size;
    }
  }
};

// Asked once: on a virtual machine every CPUID is an exit.
const XstateLayout& xstate_layout() {
  static const XstateLayout layout;
  return layout;
}

// Length of the standard format with these features, as the kernel computes it.
uint32_t xstate_length(uint64_t xfeatures) {
  uint32_t length = kLegacyXstateBytes;
  for (uint32_t feature = 2; feature < 63; ++feature) {
    if (xfeatures >> feature & 1) length = std::max(length, xstate_layout().end_bytes[feature]);
  }
  return length;
}

}  // namespace

void prepare_self_return_frames() { xstate_layout(); }

size_t self_return_frame_bytes(size_t xstate_length_bytes) {
  return align(sizeof(SignalFrame), kXstateAlignment) +
         align(xstate_length_bytes + sizeof kFpXstateMagic2, kXstateAlignment) + kXstateAlignment;
}

uint64_t write_self_return_frame(unsigned char* own, uint64_t target_address, const InterruptedContext& context,
                                 const std::string& xstate, uint64_t rseq_abort_ip, uint64_t return_address) {
  STASIS_ASSERT(target_address % kXstateAlignment == 0);
  STASIS_ASSERT(xstate.size() >= kLegacyXstateBytes);
  const user_regs_struct& registers = context.registers;
  const size_t xstate_offset = align(sizeof(SignalFrame), kXstateAlignment);

  SignalFrame frame{};
  frame.context.flags = kUcFpXstate | kUcSigcontextSs | kUcStrictRestoreSs;
  frame.return_address = return_address;
  frame.context.stack_flags = kInvalidStackFlags;
  frame.context.signal_mask = context.signal_mask;
  SignalContext& saved = frame.context.context;
  saved.r8 = registers.r8;
  saved.r9 = registers.r9;
  saved.r10 = registers.r10;
  saved.r11 = registers.r11;
  saved.r12 = registers.r12;
  saved.r13 = registers.r13;
  saved.r14 = registers.r14;
  saved.r15 = registers.r15;
  saved.di = registers.rdi;
  saved.si = registers.rsi;
  saved.bp = registers.rbp;
  saved.bx = registers.rbx;
  saved.dx = registers.rdx;
  saved.ax = registers.rax;
  saved.cx = registers.rcx;
  saved.sp = registers.rsp;
  saved.ip = registers.rip;
  saved.flags = registers.eflags;
  saved.cs = static_cast<uint16_t>(registers.cs);
  saved.ss = static_cast<uint16_t>(registers.ss);
  saved.fpstate = target_address + xstate_offset;
  const int64_t result = static_cast<int64_t>(registers.rax);
  if (static_cast<int64_t>(registers.orig_rax) >= 0 &&
      (result == kRestartSys || result == kRestartNoIntr || result == kRestartNoHand || result == kRestartBlock)) {
    saved.ax = registers.orig_rax;
    saved.ip -= kSyscallInstructionBytes;
  }
  if (rseq_abort_ip) saved.ip = rseq_abort_ip;

  std::memcpy(own, &frame, sizeof frame);
  std::memcpy(own + xstate_offset, xstate.data(), xstate.size());
  SoftwareBytes software{};
  uint64_t in_use = 0;
  std::memcpy(&software.xfeatures, xstate.data() + kSoftwareBytesOffset, sizeof software.xfeatures);  // XCR0 here
  std::memcpy(&in_use, xstate.data() + kXstateHeaderOffset, sizeof in_use);
  // Tile data is a feature that a thread has to ask for; without it the kernel
  // refuses a frame of the full length.
  if (!(in_use & kXfeatureTileData)) software.xfeatures &= ~kXfeatureTileData;
  software.magic1 = kFpXstateMagic1;
  software.xstate_size = std::min<uint32_t>(xstate_length(software.xfeatures), static_cast<uint32_t>(xstate.size()));
  software.extended_size = software.xstate_size + static_cast<uint32_t>(sizeof kFpXstateMagic2);
  std::memcpy(own + xstate_offset + kSoftwareBytesOffset, &software, sizeof software);
  std::memcpy(own + xstate_offset + software.xstate_size, &kFpXstateMagic2, sizeof kFpXstateMagic2);
  return target_address + offsetof(SignalFrame, context);
}

}  // namespace stasis
