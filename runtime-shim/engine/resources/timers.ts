// Interval timers and POSIX timers of processes. They are armed as late as
// possible: their time runs again from then on.
import type { itimer_entry, posix_timer_entry } from '../../../oci-spec/images/messages.js';
import { name } from '../capture-limits.js';
import type { CompileContext, ImageTask } from '../compile-context.js';
import type { CapturedTask, EncodeContext } from '../encode-context.js';
import { Phase, type TaskBuilder } from '../plan/builder.js';
import type { Room } from '../room.js';
import { Struct, u64Bytes } from '../struct.js';
import { prctl } from './prctl.js';

/** Creates POSIX timers with their ids; needs all threads. */
export const timersRoom: Room = { kind: 'timers', encode, compile };
/** Arms them, late in the last phase. */
export const armTimersRoom: Room = { kind: 'arm-timers', compile: compileArming };

const kItimers = ['real', 'virt', 'prof'] as const;
const kSigevBytes = 64; // struct sigevent
const kSigevNone = 1;
const kSigevThreadId = 4;

// ---- raw capture to images

function encode(ctx: EncodeContext): void {
  for (const task of ctx.tasks) {
    if (task.raw.zombie) continue;
    const [real, virt, prof] = kItimers.map((_, which) => itimerToImage(task.raw.itimers[which]));
    if (real === undefined || virt === undefined || prof === undefined) continue;
    ctx.draft(task).core.tc.timers = { real, virt, prof, posix: posixTimers(ctx, task) };
  }
}

/** struct itimerval: interval, then value; seconds and microseconds each. */
function itimerToImage(bytes: Uint8Array | undefined): itimer_entry {
  if (bytes === undefined || bytes.length < 32) return { isec: 0n, iusec: 0n, vsec: 0n, vusec: 0n };
  const timer = new Struct(bytes);
  return { isec: timer.u64(0), iusec: timer.u64(8), vsec: timer.u64(16), vusec: timer.u64(24) };
}

export interface PrintedTimer {
  readonly id: number;
  readonly signal: number;
  readonly value: bigint;
  readonly notify: number;
  /** As the reader's pid namespace has it; for notify SIGEV_THREAD_ID a thread. */
  readonly notifyPid: number;
  readonly clock: number;
}

const kNotifyWords: ReadonlyMap<string, number> = new Map([
  ['signal', 0],
  ['none', 1],
  ['thread', 2],
]);

/** /proc/PID/timers: "ID: 0", "signal: 14/00007ffc…", "notify: signal/tid.4711", "ClockID: 1". */
export function parseTimers(bytes: Uint8Array): PrintedTimer[] {
  const timers: PrintedTimer[] = [];
  const text = Buffer.from(bytes).toString('latin1');
  const pattern =
    /ID:\s*(\d+)\s+signal:\s*(\d+)\/([0-9a-fx]+|\(null\))\s+notify:\s*([a-z]+)\/([a-z]+)\.(-?\d+)\s+ClockID:\s*(-?\d+)/g;
  for (const [, id, signal, value, notify, whom, pid, clock] of text.matchAll(pattern)) {
    timers.push({
      id: Number(id),
      signal: Number(signal),
      value: value === undefined || value.startsWith('(') ? 0n : BigInt(`0x${value.replace(/^0x/, '')}`),
      notify: (kNotifyWords.get(notify ?? '') ?? 0) | (whom === 'tid' ? kSigevThreadId : 0),
      notifyPid: Number(pid),
      clock: Number(clock),
    });
  }
  return timers;
}

function posixTimers(ctx: EncodeContext, task: CapturedTask): posix_timer_entry[] {
  const values = new Map(task.raw.posixTimers.map((timer) => [timer.id, timer]));
  return parseTimers(task.raw.timers)
    .sort((left, right) => left.id - right.id)
    .flatMap((timer): posix_timer_entry[] => {
      const state = values.get(timer.id);
      if (state === undefined || state.value.length < 32) {
        ctx.object(
          'CAPTURE_TASK_UNSUPPORTED',
          `${name(task)} has a timer (id ${timer.id}) whose state was not captured`,
          ctx.subjectOfTask(task),
          'try again',
        );
        return [];
      }
      const value = new Struct(state.value);
      const entry: posix_timer_entry = {
        it_id: timer.id,
        clock_id: timer.clock >>> 0,
        si_signo: timer.signal,
        it_sigev_notify: timer.notify,
        sival_ptr: timer.value,
        overrun: state.overrun,
        isec: value.u64(0),
        insec: value.u64(8),
        vsec: value.u64(16),
        vnsec: value.u64(24),
      };
      if ((timer.notify & kSigevThreadId) === 0) return [entry];
      const thread = task.raw.threads.find((candidate) => candidate.hostTid === timer.notifyPid);
      if (thread === undefined) {
        ctx.object(
          'CAPTURE_TASK_UNSUPPORTED',
          `${name(task)} has a timer (id ${timer.id}) for a thread that has gone`,
          ctx.subjectOfTask(task),
        );
        return [];
      }
      return [{ ...entry, notify_thread_id: thread.nsTids.at(-1) ?? thread.hostTid }];
    });
}

// ---- images to plan

function compile(ctx: CompileContext): void {
  for (const { image, builder } of ctx.tasks.values()) {
    const timers = image.core.tc?.timers?.posix ?? [];
    if (image.zombie || timers.length === 0) continue;
    const from = `core[${image.pid}].tc.timers`;
    if (ctx.options.kernel.timerRestoreIds === false) {
      createInOrder(ctx, image, builder, timers, from);
      continue;
    }
    builder.step(Phase.THREADS, 'prctl', [prctl.TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0], { from });
    for (const timer of timers) createTimer(ctx, image, builder, timer, from);
    builder.step(Phase.THREADS, 'prctl', [prctl.TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0], { from });
  }
}

/** Two steps each. */
const kMaximalDummyTimers = 10_000;

/** Before Linux 6.15: ids count up in each process from 0, so those between are created and deleted. */
function createInOrder(
  ctx: CompileContext,
  task: ImageTask,
  builder: TaskBuilder,
  timers: readonly posix_timer_entry[],
  from: string,
): void {
  let next = 0;
  for (const timer of [...timers].sort((left, right) => left.it_id - right.it_id)) {
    if (timer.it_id - next > kMaximalDummyTimers) {
      ctx.object(
        'KERNEL_FEATURE_MISSING',
        `this kernel cannot give a timer of pid ${task.pid} its id ${timer.it_id}`,
        { nsPid: task.pid },
        'PR_TIMER_CREATE_RESTORE_IDS needs Linux 6.15',
      );
      return;
    }
    for (; next < timer.it_id; next += 1) {
      const none = ctx.plan.blob(new Struct(kSigevBytes).setI32(12, kSigevNone).bytes);
      builder.step(Phase.THREADS, 'timer_create', [0, none, ctx.plan.blob(new Uint8Array(4))], { from });
      builder.step(Phase.THREADS, 'timer_delete', [next], { from });
    }
    createTimer(ctx, task, builder, timer, from);
    next = timer.it_id + 1;
  }
}

function createTimer(
  ctx: CompileContext,
  task: ImageTask,
  builder: TaskBuilder,
  timer: posix_timer_entry,
  from: string,
): void {
  const event = new Struct(kSigevBytes)
    .setU64(0, timer.sival_ptr)
    .setI32(8, timer.si_signo)
    .setI32(12, timer.it_sigev_notify);
  if ((timer.it_sigev_notify & kSigevThreadId) !== 0) {
    const tid = timer.notify_thread_id;
    if (tid === undefined || !task.threads.has(tid)) {
      ctx.object('IMAGE_CORRUPT', `timer ${timer.it_id} of pid ${task.pid} is for a thread that is not there`, {
        image: `core-${task.pid}.img`,
      });
      return;
    }
    event.setI32(16, tid);
  }
  const id = ctx.plan.blob(new Struct(4).setU32(0, timer.it_id).bytes);
  builder.step(Phase.THREADS, 'timer_create', [BigInt(timer.clock_id | 0), ctx.plan.blob(event.bytes), id], {
    from: `${from}[${timer.it_id}]`,
  });
}

function compileArming(ctx: CompileContext): void {
  for (const { image, builder } of ctx.tasks.values()) {
    const timers = image.core.tc?.timers;
    if (image.zombie || timers === undefined) continue;
    const from = `core[${image.pid}].tc.timers`;
    kItimers.forEach((which, number) => {
      const { isec, iusec, vsec, vusec } = timers[which];
      // no value but an interval: it has just fired, and its signal is pending
      const [sec, usec] = vsec === 0n && vusec === 0n ? [isec, iusec] : [vsec, vusec];
      if (sec === 0n && usec === 0n) return;
      builder.step(Phase.CREDENTIALS, 'setitimer', [number, ctx.plan.blob(u64Bytes(isec, iusec, sec, usec)), 0], {
        from: `${from}.${which}`,
      });
    });
    for (const { it_id, isec, insec, vsec, vnsec } of timers.posix) {
      const [sec, nsec] = vsec === 0n && vnsec === 0n ? [isec, insec] : [vsec, vnsec];
      if (sec === 0n && nsec === 0n) continue;
      builder.step(Phase.CREDENTIALS, 'timer_settime', [it_id, 0, ctx.plan.blob(u64Bytes(isec, insec, sec, nsec)), 0], {
        from: `${from}[${it_id}]`,
      });
    }
  }
}
