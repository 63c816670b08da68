// General registers: struct user_regs_struct (ptrace(2)) and its image form.
import type { user_x86_regs_entry } from '../../../oci-spec/images/messages.js';
import { Struct } from '../struct.js';

/** sys/user.h, user_regs_struct: 27 words in this order; the image has the same order. */
const kWords = [
  'r15', 'r14', 'r13', 'r12', 'bp', 'bx', 'r11', 'r10', 'r9', 'r8', 'ax', 'cx', 'dx', 'si', 'di', 'orig_ax',
  'ip', 'cs', 'flags', 'sp', 'ss', 'fs_base', 'gs_base', 'ds', 'es', 'fs', 'gs',
] as const; // prettier-ignore

export const kRegistersBytes = 8 * kWords.length;

const kModeNative = 1;

/** Kernel-internal results of interrupted system calls (include/linux/errno.h); they never reach user space. */
const kRestartSys = -512n;
const kRestartNoIntr = -513n;
const kRestartNoHand = -514n;
const kRestartBlock = -516n;
const kEintr = 4n;
const kSyscallInstructionBytes = 2n;

export interface RseqCriticalSection {
  readonly start: bigint;
  readonly lengthBytes: bigint;
  readonly abort: bigint;
}

/** struct rseq_cs: version, flags, start_ip, post_commit_offset, abort_ip. */
export function parseRseqCriticalSection(bytes: Uint8Array): RseqCriticalSection | undefined {
  if (bytes.length < 32) return undefined;
  const section = new Struct(bytes);
  return { start: section.u64(8), lengthBytes: section.u64(16), abort: section.u64(24) };
}

/**
 * The image form, made so that the thread can simply be set to these registers:
 * an interrupted system call is restarted (or fails with EINTR where only the
 * kernel knew how to go on), a restartable sequence is aborted.
 */
export function registersToImage(
  registers: Uint8Array,
  criticalSection: RseqCriticalSection | undefined,
): user_x86_regs_entry {
  const raw = new Struct(registers);
  const entry = { mode: kModeNative } as user_x86_regs_entry;
  kWords.forEach((word, index) => (entry[word] = raw.u64(8 * index)));
  if (BigInt.asIntN(64, entry.orig_ax) >= 0n) {
    switch (BigInt.asIntN(64, entry.ax)) {
      case kRestartSys:
      case kRestartNoIntr:
      case kRestartNoHand:
        entry.ax = entry.orig_ax;
        entry.ip -= kSyscallInstructionBytes;
        break;
      case kRestartBlock:
        // how far it had come is in the kernel's restart_block, which dies with the task
        if (canStartOver(entry)) {
          entry.ax = entry.orig_ax;
          entry.ip -= kSyscallInstructionBytes;
        } else {
          entry.ax = BigInt.asUintN(64, -kEintr);
        }
        break;
    }
  }
  if (
    criticalSection !== undefined &&
    entry.ip >= criticalSection.start &&
    entry.ip < criticalSection.start + criticalSection.lengthBytes
  ) {
    entry.ip = criticalSection.abort;
  }
  return entry;
}

const kPoll = 7n;
const kNanosleep = 35n;
const kFutex = 202n;
const kClockNanosleep = 230n;

/**
 * Calls with a relative timeout, interrupted in the middle. Most programs do
 * not expect EINTR where no handler ran, so the call starts over with its whole
 * timeout; it may last longer than it was asked to, which timeouts allow. A
 * sleep that was told where to leave the rest of its time has done so, and its
 * caller knows how to go on.
 */
function canStartOver(entry: user_x86_regs_entry): boolean {
  switch (entry.orig_ax) {
    case kPoll:
    case kFutex:
      return true;
    case kNanosleep:
      return entry.si === 0n;
    case kClockNanosleep:
      return entry.r10 === 0n;
    default:
      // restart_syscall: it was continued before, and its number is lost
      return false;
  }
}

/** user_regs_struct for release: not inside a system call, or the kernel would "restart" what parked the thread. */
export function registersFromImage(entry: user_x86_regs_entry): Uint8Array {
  const raw = new Struct(kRegistersBytes);
  kWords.forEach((word, index) => raw.setU64(8 * index, word === 'orig_ax' ? -1n : entry[word]));
  return raw.bytes;
}

export function isCompatRegisters(entry: user_x86_regs_entry): boolean {
  return entry.mode !== undefined && entry.mode !== kModeNative;
}
