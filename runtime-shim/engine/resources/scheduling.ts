// Scheduling of every thread: policy, nice value, real-time priority; CPU
// affinity, timer slack and I/O priority in our own extension of the format.
import type { CompileContext } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import { Phase } from '../plan/builder.js';
import type { Room } from '../room.js';
import { Struct } from '../struct.js';
import { prctl } from './prctl.js';
import { forEachThread } from './threads.js';

export const schedulingRoom: Room = { kind: 'scheduling', encode, compile };

/** struct sched_attr as Linux 3.14 had it: every kernel takes it. */
const kAttrBytes = 48;
const kPolicyFifo = 1;
const kPolicyRoundRobin = 2;
const kPolicyIdle = 5;
const kPolicyDeadline = 6;
const kPolicyMask = 0xffff;
const kResetOnFork = 0x40000000;
const kFlagResetOnFork = 1n;
const kWhoProcess = 1;
const kPrioProcess = 0;
const kIoClassShift = 13;
const kEinval = 22;

function encode(ctx: EncodeContext): void {
  for (const task of ctx.tasks) {
    if (task.raw.zombie) continue;
    const draft = ctx.draft(task);
    for (const thread of task.raw.threads) {
      const part = draft.threads.get(thread.nsTids.at(-1) ?? thread.hostTid)?.thread_core;
      if (part === undefined) continue;
      if (thread.scheduling.length >= 24) {
        const attr = new Struct(thread.scheduling);
        const policy = attr.u32(4);
        if (policy === kPolicyDeadline) {
          ctx.object(
            'CAPTURE_TASK_UNSUPPORTED',
            `thread ${thread.hostTid} of pid ${task.raw.hostPid} (${task.stat.comm}) is scheduled by deadline`,
            ctx.subjectOfTask(task),
            'give it another scheduling policy (chrt) first',
          );
          continue;
        }
        part.sched_policy = policy | ((attr.u64(8) & kFlagResetOnFork) !== 0n ? kResetOnFork : 0);
        part.sched_nice = attr.i32(16);
        if (policy === kPolicyFifo || policy === kPolicyRoundRobin) part.sched_prio = attr.u32(20);
      }
      part.stasis = {
        ...(thread.affinity.length === 0 ? {} : { affinity: thread.affinity }),
        timer_slack_ns: BigInt(thread.timerSlackNs),
        io_priority: thread.ioPriority,
      };
    }
  }
}

function compile(ctx: CompileContext): void {
  for (const planned of ctx.tasks.values()) {
    if (planned.image.zombie) continue;
    forEachThread(planned, (builder, core, tid) => {
      const part = core.thread_core;
      if (part === undefined) return;
      const from = `core[${tid}].sched`;
      if (part.sched_policy !== undefined || part.sched_nice !== undefined) {
        const stored = part.sched_policy ?? 0;
        const attr = new Struct(kAttrBytes)
          .setU32(0, kAttrBytes)
          .setU32(4, stored & kPolicyMask)
          .setU64(8, (stored & kResetOnFork) !== 0 ? kFlagResetOnFork : 0n)
          .setI32(16, part.sched_nice ?? 0)
          .setU32(20, part.sched_prio ?? 0);
        // sched_setattr takes the nice value of normal and batch threads only (sched(7)); the others keep one all the same
        if ((stored & kPolicyMask) === kPolicyIdle)
          builder.step(Phase.THREADS, 'setpriority', [kPrioProcess, 0, part.sched_nice ?? 0], { from });
        builder.step(Phase.THREADS, 'sched_setattr', [0, ctx.plan.blob(attr.bytes), 0], { from });
      }
      const extra = part.stasis;
      if (extra?.affinity !== undefined && extra.affinity.length > 0) {
        builder.step(Phase.THREADS, 'sched_setaffinity', [0, extra.affinity.length, ctx.plan.blob(extra.affinity)], {
          from,
          // none of these CPUs is here: the thread may run anywhere
          tolerate: [kEinval],
        });
      }
      // 0 would mean: the default
      if (extra?.timer_slack_ns !== undefined && extra.timer_slack_ns !== 0n)
        builder.step(Phase.THREADS, 'prctl', [prctl.SET_TIMERSLACK, extra.timer_slack_ns, 0, 0, 0], { from });
      // class none: it follows from the nice value
      if (extra?.io_priority !== undefined && extra.io_priority >> kIoClassShift !== 0)
        builder.step(Phase.THREADS, 'ioprio_set', [kWhoProcess, 0, extra.io_priority], { from });
    });
  }
}
