// Signals: actions and pending queues. Masks are part of a thread's release.
import type { sa_entry, signal_queue_entry } from '../../../oci-spec/images/messages.js';
import type { CompileContext } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import { Phase, type TaskBuilder } from '../plan/builder.js';
import type { Room } from '../room.js';
import { Struct } from '../struct.js';
import { forEachThread } from './threads.js';

const kSignals = 64;
const kSignalKill = 9;
const kSignalStop = 19;
/** kernel's struct sigaction on x86-64: handler, flags, restorer, mask */
const kActionBytes = 32;
const kSigsetBytes = 8;
const kSiginfoBytes = 128;

export const signalsRoom: Room = { kind: 'signals', encode, compile };

/** Signals whose action can be set, in the order of sa_entry lists. */
const kCatchable = Array.from({ length: kSignals }, (_, index) => index + 1).filter(
  (signal) => signal !== kSignalKill && signal !== kSignalStop,
);

function encode(ctx: EncodeContext): void {
  for (const task of ctx.tasks) {
    if (task.raw.zombie) continue;
    const draft = ctx.draft(task);
    draft.core.tc.sigactions = kCatchable.map((signal) => actionToImage(task.raw.sigactions[signal - 1]));
    draft.core.tc.signals_s = queueToImage(task.raw.sharedPendingSignals);
    for (const thread of task.raw.threads) {
      const core = draft.threads.get(thread.nsTids.at(-1) ?? thread.hostTid);
      if (core !== undefined) core.thread_core.signals_p = queueToImage(thread.pendingSignals);
    }
  }
}

function actionToImage(bytes: Uint8Array | undefined): sa_entry {
  if (bytes === undefined || bytes.length < kActionBytes) return { sigaction: 0n, flags: 0n, restorer: 0n, mask: 0n };
  const action = new Struct(bytes);
  return { sigaction: action.u64(0), flags: action.u64(8), restorer: action.u64(16), mask: action.u64(24) };
}

function queueToImage(signals: readonly Uint8Array[]): signal_queue_entry {
  return { signals: signals.map((siginfo) => ({ siginfo })) };
}

function compile(ctx: CompileContext): void {
  for (const planned of ctx.tasks.values()) {
    const { image, builder } = planned;
    const { tc } = image.core;
    if (image.zombie || tc === undefined) continue;
    compileActions(ctx, builder, tc.sigactions, image.pid);
    forEachThread(planned, (thread, core, tid) => {
      const own = core.thread_core?.signals_p?.signals ?? [];
      for (const { siginfo } of own) queue(ctx, thread, image.pid, tid, siginfo, `core[${tid}].signals_p`);
    });
    for (const { siginfo } of tc.signals_s?.signals ?? [])
      queue(ctx, builder, image.pid, undefined, siginfo, `core[${image.pid}].signals_s`);
  }
}

function compileActions(ctx: CompileContext, builder: TaskBuilder, actions: readonly sa_entry[], pid: number): void {
  actions.slice(0, kCatchable.length).forEach((action, index) => {
    // a new task has the default action of every signal
    if (action.sigaction === 0n && action.flags === 0n && action.mask === 0n) return;
    if (action.compat_sigaction === true) {
      ctx.object('IMAGE_FEATURE_UNSUPPORTED', `pid ${pid} has a 32-bit signal handler`, { nsPid: pid });
      return;
    }
    const bytes = new Struct(kActionBytes)
      .setU64(0, action.sigaction)
      .setU64(8, action.flags)
      .setU64(16, action.restorer)
      .setU64(24, action.mask).bytes;
    builder.step(Phase.THREADS, 'rt_sigaction', [kCatchable[index] ?? 0, ctx.plan.blob(bytes), 0, kSigsetBytes], {
      from: `core[${pid}].sigactions[${index}]`,
    });
  });
}

/**
 * Any si_code may be sent to oneself (Linux 3.9). A thread's own queue is
 * filled by itself, the process's by the leader; all of them block everything
 * until release.
 */
function queue(
  ctx: CompileContext,
  builder: TaskBuilder,
  pid: number,
  tid: number | undefined,
  siginfo: Uint8Array,
  from: string,
): void {
  if (siginfo.length !== kSiginfoBytes) {
    ctx.object('IMAGE_CORRUPT', `a pending signal of pid ${pid} has ${siginfo.length} bytes, wanted ${kSiginfoBytes}`, {
      image: `core-${pid}.img`,
    });
    return;
  }
  const signal = new Struct(siginfo).i32(0);
  const blob = ctx.plan.blob(siginfo);
  if (tid === undefined) builder.step(Phase.THREADS, 'rt_sigqueueinfo', [pid, signal, blob], { from });
  else builder.step(Phase.THREADS, 'rt_tgsigqueueinfo', [pid, tid, signal, blob], { from });
}
