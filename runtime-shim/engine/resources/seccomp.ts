// Seccomp filters. The image has each program once, linked to the one below it;
// where all threads of a process have the same chain, the leader installs it
// for all (TSYNC), so that they share it as before.
import type { seccomp_filter } from '../../../oci-spec/images/messages.js';
import type { CompileContext, ImageModel, PlannedTask } from '../compile-context.js';
import type { CapturedTask, EncodeContext } from '../encode-context.js';
import { Phase, type TaskBuilder } from '../plan/builder.js';
import { ProcStatus } from '../proc-text.js';
import type { Room } from '../room.js';
import { Struct } from '../struct.js';
import { forEachThread } from './threads.js';

export const seccompRoom: Room = { kind: 'seccomp', encode, compile };

const kModeDisabled = 0;
const kModeStrict = 1;
const kModeFilter = 2;
const kFlagTsync = 1;
const kFlagLog = 2;
const kSetModeStrict = 0;
const kSetModeFilter = 1;
const kInstructionBytes = 8;
/** BPF_MAXINSNS */
const kMaximalInstructions = 4096;
/** No chain is longer: the kernel bounds all programs of a chain together (MAX_INSNS_PER_PATH). */
const kMaximalChain = 32768;

// ---- raw capture to images

function encode(ctx: EncodeContext): void {
  const filters: seccomp_filter[] = [];
  const known = new Map<string, number>();
  /** Adds a chain, oldest first; the index of the youngest. */
  const addChain = (chain: readonly number[], flags: number): number | undefined => {
    let last: number | undefined;
    for (const index of chain) {
      const filter = ctx.capture.seccompFilters[index];
      if (filter === undefined) continue;
      const key = `${last ?? '-'}:${index}:${flags}`;
      let at = known.get(key);
      if (at === undefined) {
        at = filters.length;
        known.set(key, at);
        filters.push({
          filter: filter.program,
          ...(last === undefined ? {} : { prev: last }),
          flags: (Number(filter.flags) & kFlagLog) | flags,
        });
      }
      last = at;
    }
    return last;
  };
  for (const task of ctx.tasks) if (!task.raw.zombie) encodeTask(ctx, task, addChain);
  ctx.images.add('seccomp', undefined, { seccomp_filters: filters });
}

function encodeTask(
  ctx: EncodeContext,
  task: CapturedTask,
  addChain: (chain: readonly number[], flags: number) => number | undefined,
): void {
  const draft = ctx.draft(task);
  const { threads } = task.raw;
  const same = threads.every((thread) => thread.seccompFilters.join() === threads[0]?.seccompFilters.join());
  threads.forEach((thread, index) => {
    const part = draft.threads.get(thread.nsTids.at(-1) ?? thread.hostTid)?.thread_core;
    if (part === undefined) return;
    const mode = new ProcStatus(thread.status).numbers('Seccomp')[0] ?? kModeDisabled;
    if (mode === kModeDisabled) return;
    if (mode !== kModeFilter) {
      part.seccomp_mode = mode;
      return;
    }
    if (thread.seccompFilters.length === 0) {
      ctx.object(
        'CAPTURE_TASK_UNSUPPORTED',
        `the seccomp filters of thread ${thread.hostTid} of pid ${task.raw.hostPid} (${task.stat.comm}) could not be read`,
        ctx.subjectOfTask(task),
        'PTRACE_SECCOMP_GET_FILTER needs CAP_SYS_ADMIN in the initial user namespace',
      );
      return;
    }
    if (same && index > 0) {
      part.seccomp_mode = kModeDisabled;
      return;
    }
    const last = addChain(thread.seccompFilters, same && threads.length > 1 ? kFlagTsync : 0);
    if (last === undefined) return;
    part.seccomp_mode = kModeFilter;
    part.seccomp_filter = last;
  });
}

// ---- images to plan

function compile(ctx: CompileContext): void {
  const filters = ctx.images.set.maybe('seccomp')?.seccomp_filters ?? [];
  for (const planned of ctx.tasks.values()) if (!planned.image.zombie) compileTask(ctx, planned, filters);
}

function compileTask(ctx: CompileContext, planned: PlannedTask, filters: readonly seccomp_filter[]): void {
  const { image } = planned;
  forEachThread(planned, (builder, core, tid) => {
    const part = core.thread_core;
    const leader = tid === image.pid;
    const mode = part?.seccomp_mode ?? (leader ? image.core.tc?.old_seccomp_mode : undefined) ?? kModeDisabled;
    const from = `core[${tid}].seccomp`;
    if (mode === kModeDisabled) return;
    if (mode === kModeStrict) {
      builder.step(Phase.CREDENTIALS, 'seccomp', [kSetModeStrict, 0, 0], { from });
      return;
    }
    const chain = chainOf(filters, part?.seccomp_filter);
    if (chain === undefined) {
      ctx.object('IMAGE_CORRUPT', `the seccomp filters of thread ${tid} are not all in "seccomp.img"`, {
        image: 'seccomp.img',
      });
      return;
    }
    for (const index of chain) installFilter(ctx, builder, filters[index] as seccomp_filter, index);
  });
}

/** The first filter of the first process: the container's own, which came before any that its programs have added. */
export function containerFilter(model: ImageModel): Uint8Array | undefined {
  const filters = model.set.maybe('seccomp')?.seccomp_filters ?? [];
  const [oldest] = chainOf(filters, model.tasks[0]?.core.thread_core?.seccomp_filter) ?? [];
  return oldest === undefined ? undefined : filters[oldest]?.filter;
}

/** Oldest first; undefined if a link leads nowhere. */
function chainOf(filters: readonly seccomp_filter[], youngest: number | undefined): number[] | undefined {
  const chain: number[] = [];
  for (let at = youngest; at !== undefined; at = filters[at]?.prev) {
    const filter = filters[at];
    if (filter === undefined || chain.length > kMaximalChain || (filter.prev ?? -1) >= at) return undefined;
    chain.unshift(at);
  }
  return chain.length === 0 ? undefined : chain;
}

function installFilter(ctx: CompileContext, builder: TaskBuilder, filter: seccomp_filter, index: number): void {
  const from = `seccomp[${index}]`;
  const instructions = filter.filter.length / kInstructionBytes;
  if (!Number.isInteger(instructions) || instructions === 0 || instructions > kMaximalInstructions) {
    ctx.object('IMAGE_CORRUPT', `seccomp filter ${index} has an impossible length (${filter.filter.length} bytes)`, {
      image: 'seccomp.img',
    });
    return;
  }
  // struct sock_fprog: count, pointer
  const program = ctx.plan.blob(new Struct(16).setU16(0, instructions).bytes, [
    { offset: 8, blob: ctx.plan.blob(filter.filter) },
  ]);
  // with TSYNC the result can also be the tid of a thread that could not follow
  builder.step(Phase.CREDENTIALS, 'seccomp', [kSetModeFilter, filter.flags ?? 0, program], { from, expected: 0 });
}
