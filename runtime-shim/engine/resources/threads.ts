// Threads: registers and extended state, the addresses that the kernel keeps
// for user space (tid, robust list, rseq, signal stack), names.
import type { core_entry, thread_core_entry } from '../../../oci-spec/images/messages.js';
import type { Thread } from '../../../nativecore/schema/messages.js';
import { constantList } from '../../../oci-spec/protobuf/wire.js';
import { name } from '../capture-limits.js';
import type { CompileContext, ImageTask, PlannedTask } from '../compile-context.js';
import type { CoreDraft, EncodeContext } from '../encode-context.js';
import { Phase, type TaskBuilder } from '../plan/builder.js';
import { textOf } from '../proc-text.js';
import type { Room } from '../room.js';
import { Struct } from '../struct.js';
import {
  isCompatRegisters,
  kRegistersBytes,
  parseRseqCriticalSection,
  registersFromImage,
  registersToImage,
} from '../x86/registers.js';
import { unsupportedState, xstateFromImage, xstateLayout, xstateToImage } from '../x86/xstate.js';
import { prctl } from './prctl.js';

const kSignalStackDisabled = 2; // SS_DISABLE
const kSignalStackOn = 1; // SS_ONSTACK
const kSignalStackBytes = 24;
/** struct robust_list_head */
const kRobustListBytes = 24;
/** FXSAVE area and header: less is not an XSAVE area */
const kLeastXstateBytes = 512;

export const threadsRoom: Room = { kind: 'threads', encode, compile };

// ---- raw capture to images

function encode(ctx: EncodeContext): void {
  for (const task of ctx.tasks) {
    if (task.raw.zombie) continue;
    const draft = ctx.draft(task);
    draft.core.tc.blk_sigset = task.raw.threads[0]?.signalMask ?? 0n;
    for (const thread of task.raw.threads) {
      const tid = thread.nsTids.at(-1) ?? thread.hostTid;
      const core = draft.threads.get(tid);
      if (core === undefined) continue;
      if (thread.registers.length < kRegistersBytes || thread.xstate.length < kLeastXstateBytes) {
        ctx.object(
          'CAPTURE_TASK_UNSUPPORTED',
          `${name(task)} thread ${thread.hostTid} has no captured registers`,
          ctx.subjectOfTask(task),
          'try again',
        );
        continue;
      }
      encodeThread(ctx, thread, core);
    }
  }
}

function encodeThread(ctx: EncodeContext, thread: Thread, core: CoreDraft): void {
  const features = ctx.capture.host?.xfeatures;
  core.thread_info = {
    clear_tid_addr: thread.tidAddress,
    gpregs: registersToImage(thread.registers, parseRseqCriticalSection(thread.rseqCriticalSection)),
    fpregs: xstateToImage(thread.xstate, features),
    tls: kEmptyThreadLocalSegments,
  };
  const part = core.thread_core;
  part.futex_rla = thread.robustListHead;
  part.futex_rla_len = Number(thread.robustListLengthBytes);
  part.blk_sigset = thread.signalMask;
  part.comm = textOf(thread.comm).replace(/\n$/, '');
  if (thread.parentDeathSignal !== 0) part.pdeath_sig = thread.parentDeathSignal;
  if (thread.sigaltstack.length >= kSignalStackBytes) {
    const stack = new Struct(thread.sigaltstack);
    part.sas = { ss_sp: stack.u64(0), ss_size: stack.u64(16), ss_flags: stack.u32(8) };
  }
  if (thread.rseqAddress !== 0n) {
    part.rseq_entry = {
      rseq_abi_pointer: thread.rseqAddress,
      rseq_abi_size: thread.rseqSizeBytes,
      signature: thread.rseqSignature,
    };
  }
}

/** The three segments of set_thread_area(2), which 64-bit programs do not use. */
const kEmptyThreadLocalSegments: NonNullable<core_entry['thread_info']>['tls'] = constantList(
  [12, 13, 14].map((entry) => ({
    entry_number: entry,
    base_addr: 0,
    limit: 0,
    seg_32bit: false,
    contents_h: false,
    contents_l: false,
    read_exec_only: true,
    limit_in_pages: false,
    seg_not_present: true,
    usable: false,
  })),
);

// ---- images to plan

function compile(ctx: CompileContext): void {
  for (const planned of ctx.tasks.values()) {
    if (planned.image.zombie) continue;
    const { image, builder } = planned;
    for (const tid of image.threads.keys()) {
      if (tid === image.pid) continue;
      const thread = ctx.plan.addTask('thread', builder.index, [tid], `core[${tid}]`);
      planned.threads.set(tid, thread);
      builder.step(Phase.THREADS, 'clone_thread', [thread.index], { from: `core[${tid}]`, expected: tid });
    }
    forEachThread(planned, (thread, core, tid) => compileThread(ctx, image, thread, core, tid));
  }
}

/** Calls back for the leader and for all other threads of a process that have a core. */
export function forEachThread(
  planned: PlannedTask,
  visit: (builder: TaskBuilder, core: core_entry, tid: number) => void,
): void {
  for (const [tid, core] of planned.image.threads) {
    const builder = tid === planned.image.pid ? planned.builder : planned.threads.get(tid);
    if (builder !== undefined) visit(builder, core, tid);
  }
}

function compileThread(
  ctx: CompileContext,
  task: ImageTask,
  builder: TaskBuilder,
  core: core_entry,
  tid: number,
): void {
  const info = core.thread_info;
  const part = core.thread_core;
  if (info === undefined || part === undefined) {
    ctx.object('IMAGE_CORRUPT', `"core-${tid}.img" lacks the thread's registers`, { image: `core-${tid}.img` });
    return;
  }
  if (isCompatRegisters(info.gpregs)) {
    ctx.object('IMAGE_FEATURE_UNSUPPORTED', `pid ${task.pid} runs 32-bit code`, { nsPid: task.pid });
    return;
  }
  const { xsaveSizeBytes, xfeatures } = ctx.options.kernel;
  const layout = xstateLayout(xsaveSizeBytes, xfeatures);
  const lacking = unsupportedState(info.fpregs, layout);
  if (lacking.length > 0) {
    ctx.object(
      'KERNEL_FEATURE_MISSING',
      `thread ${tid} of pid ${task.pid} uses processor state that this machine does not have (${lacking.join(', ')})`,
      { nsPid: task.pid },
      'restore on a machine with the same processor features',
    );
  }
  builder.release = {
    registers: registersFromImage(info.gpregs),
    xstate: xstateFromImage(info.fpregs, xsaveSizeBytes, layout),
    signalMask: tid === task.pid ? (task.core.tc?.blk_sigset ?? 0n) : (part.blk_sigset ?? 0n),
  };
  compileKernelAddresses(ctx, builder, info.clear_tid_addr, part, tid);
  const comm = tid === task.pid ? (task.core.tc?.comm ?? part.comm) : part.comm;
  if (comm !== undefined) {
    builder.step(Phase.THREADS, 'prctl', [prctl.SET_NAME, ctx.plan.text(comm), 0, 0, 0], {
      from: `core[${tid}].comm`,
    });
  }
}

function compileKernelAddresses(
  ctx: CompileContext,
  builder: TaskBuilder,
  tidAddress: bigint,
  part: thread_core_entry,
  tid: number,
): void {
  const from = `core[${tid}]`;
  builder.step(Phase.THREADS, 'set_tid_address', [tidAddress], { from: `${from}.clear_tid_addr`, expected: tid });
  if (part.futex_rla !== 0n)
    builder.step(Phase.THREADS, 'set_robust_list', [part.futex_rla, part.futex_rla_len || kRobustListBytes], {
      from: `${from}.futex_rla`,
    });
  const rseq = part.rseq_entry;
  if (rseq !== undefined && rseq.rseq_abi_pointer !== 0n)
    builder.step(Phase.THREADS, 'rseq', [rseq.rseq_abi_pointer, rseq.rseq_abi_size, 0, rseq.signature], {
      from: `${from}.rseq_entry`,
    });
  const { sas } = part;
  if (sas !== undefined && (sas.ss_flags & kSignalStackDisabled) === 0) {
    const stack = new Struct(kSignalStackBytes)
      .setU64(0, sas.ss_sp)
      // "in use" is not ours to set: it follows from the stack pointer
      .setU32(8, (sas.ss_flags & ~kSignalStackOn) >>> 0)
      .setU64(16, sas.ss_size);
    builder.step(Phase.THREADS, 'sigaltstack', [ctx.plan.blob(stack.bytes), 0], { from: `${from}.sas` });
  }
}
