// Processes: the tree, kernel object ids, namespaces of tasks, state and exit
// status, and the odd process-wide attributes. How sessions and groups come
// about is in sessions.ts; threads are in threads.ts.
import type { pstree_entry, task_kobj_ids_entry } from '../../../oci-spec/images/messages.js';
import type { CompileContext, ImageTask } from '../compile-context.js';
import type { CapturedTask, EncodeContext } from '../encode-context.js';
import { checkTask, checkTree } from '../capture-limits.js';
import { Phase, type TaskBuilder } from '../plan/builder.js';
import type { Room } from '../room.js';
import { u64Bytes } from '../struct.js';
import { prctl } from './prctl.js';
import { planFamily, type Actor, type Family } from './sessions.js';
import { takeControllingTerminal } from './tty.js';

export const taskState = { alive: 1, dead: 2, stopped: 3 } as const;

const kCloneNewPid = 0x20000000n;
const kSignalChild = 17;
const kEagain = 11;

export const taskRoom: Room = { kind: 'task', encode, compile };

// ---- raw capture to images

function encode(ctx: EncodeContext): void {
  checkTree(ctx);
  for (const task of ctx.tasks) {
    checkTask(ctx, task);
    const draft = ctx.draft(task);
    const { tc } = draft.core;
    tc.task_state = task.raw.zombie ? taskState.dead : task.raw.stopped ? taskState.stopped : taskState.alive;
    if (task.raw.stopped) tc.stop_signo = task.raw.stopSignal;
    tc.flags = Number(task.stat.big(9) & 0xffffffffn);
    // field 52 is only meaningful, and only readable, for the dead
    if (task.raw.zombie) tc.exit_code = Number(task.stat.big(52) & 0xffffn);
    else encodeAttributes(task, ctx);
    const tree: pstree_entry = {
      pid: task.nsPid,
      ppid: task.parentNsPid,
      pgid: lastNumber(task, 'NSpgid'),
      sid: lastNumber(task, 'NSsid'),
      threads: [...draft.threads.keys()],
    };
    ctx.images.add('pstree', undefined, tree);
    if (!task.raw.zombie) ctx.images.add('ids', task.nsPid, idsOf(ctx, task));
  }
}

function encodeAttributes(task: CapturedTask, ctx: EncodeContext): void {
  const { tc } = ctx.draft(task).core;
  const personality = text(task.raw.personality).trim();
  if (personality !== '') {
    // the format's own field holds the hexadecimal text read as a decimal number; the true value is beside it
    tc.personality = Number.parseInt(personality, 10) || 0;
    tc.stasis = { personality: Number.parseInt(personality, 16) };
  }
  const loginuid = text(task.raw.loginuid).trim();
  if (loginuid !== '') tc.loginuid = Number(loginuid);
  const oom = text(task.raw.oomScoreAdj).trim();
  if (oom !== '') tc.oom_score_adj = Number(oom);
  if (task.raw.childSubreaper !== 0) tc.child_subreaper = true;
  if (task.raw.membarrierRegistrations !== 0) tc.membarrier_registration_mask = task.raw.membarrierRegistrations;
}

const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString('latin1');

/** Innermost of the namespace columns; 0 means: outside of the namespace. */
function lastNumber(task: CapturedTask, key: string): number {
  return task.status.numbers(key).at(-1) ?? 0;
}

function idsOf(ctx: EncodeContext, task: CapturedTask): task_kobj_ids_entry {
  // 1 is the engine's own object of each kind
  const own = task.index + 2;
  return {
    vm_id: own,
    files_id: ctx.filesId(task),
    fs_id: own,
    sighand_id: own,
    ...namespaceIds(ctx, task.raw.namespaces),
  };
}

const kNamespaceFields = {
  pid: 'pid_ns_id',
  net: 'net_ns_id',
  ipc: 'ipc_ns_id',
  uts: 'uts_ns_id',
  mnt: 'mnt_ns_id',
  user: 'user_ns_id',
  cgroup: 'cgroup_ns_id',
  time: 'time_ns_id',
} as const;

export function namespaceIds(
  ctx: EncodeContext,
  namespaces: readonly { kind: string; inode: bigint }[],
): Partial<task_kobj_ids_entry> {
  const ids: Partial<task_kobj_ids_entry> = {};
  for (const [kind, field] of Object.entries(kNamespaceFields)) {
    const found = namespaces.find((namespace) => namespace.kind === kind);
    if (found !== undefined) ids[field] = ctx.namespaceId(kind, found.inode);
  }
  return ids;
}

// ---- images to plan

function compile(ctx: CompileContext): void {
  const { tasks } = ctx.images;
  const root = tasks[0];
  if (root === undefined) return;
  const ownPidNamespace = isOwnNamespace(ctx, root, 'pid_ns_id');
  const family = planFamily(
    tasks.map((task) => ({ ...task.entry, zombie: task.zombie })),
    ownPidNamespace,
    tasks.flatMap((task) => [...task.threads.keys()]),
  );
  for (const { pid, reason } of family.problems)
    ctx.object('IMAGE_FEATURE_UNSUPPORTED', `pid ${pid}: ${reason}`, { nsPid: pid });
  if ((family.foreignSession || family.foreignGroup) && !ctx.options.shellJob) {
    ctx.object(
      'IMAGE_FEATURE_UNSUPPORTED',
      `the session or process group of pid ${root.pid} belongs to a process outside of the checkpoint`,
      { nsPid: root.pid },
      'pass --shell-job to let it live in the session of the caller',
    );
  }
  const builders = addTasks(ctx, family);
  const rootBuilder = builders.get(family.actors[0] as Actor);
  if (ownPidNamespace && rootBuilder !== undefined) rootBuilder.cloneFlags |= kCloneNewPid;
  for (const actor of family.actors) {
    const builder = builders.get(actor);
    if (builder !== undefined) addSteps(ctx, actor, builder, builders);
  }
  for (const task of tasks) compileAttributes(ctx, task);
}

/** Was this a namespace of its own, other than that of whoever made the checkpoint? */
export function isOwnNamespace(
  ctx: CompileContext,
  task: ImageTask,
  field: (typeof kNamespaceFields)[keyof typeof kNamespaceFields],
): boolean {
  const id = task.ids?.[field];
  const outside = ctx.images.inventory.root_ids?.[field];
  return id !== undefined && id !== 0 && id !== outside;
}

function addTasks(ctx: CompileContext, family: Family): Map<Actor, TaskBuilder> {
  const byPid = new Map(ctx.images.tasks.map((task) => [task.pid, task]));
  const builders = new Map<Actor, TaskBuilder>();
  for (const actor of family.actors) {
    const image = actor.member === undefined ? undefined : byPid.get(actor.member.pid);
    const creator = actor.creator === undefined ? undefined : builders.get(actor.creator);
    const kind = image === undefined ? 'helper' : image.zombie ? 'zombie' : 'process';
    const setTid = actor.pid === undefined ? [] : [actor.pid];
    const from = image === undefined ? `pstree (leader ${actor.pid ?? 'of a session'} has gone)` : fromOf(image);
    const builder = ctx.plan.addTask(kind, creator?.index ?? 0, setTid, from);
    builders.set(actor, builder);
    if (image === undefined) continue;
    ctx.tasks.set(image.pid, { image, builder, threads: new Map() });
  }
  return builders;
}

function addSteps(
  ctx: CompileContext,
  actor: Actor,
  builder: TaskBuilder,
  builders: ReadonlyMap<Actor, TaskBuilder>,
): void {
  const from = builder.from;
  for (const action of actor.actions) {
    switch (action.kind) {
      case 'subreaper':
        builder.step(Phase.TASKS, 'prctl', [prctl.SET_CHILD_SUBREAPER, 1, 0, 0, 0], {
          from,
          note: 'adopts the children of helpers',
        });
        builder.step(Phase.THREADS, 'prctl', [prctl.SET_CHILD_SUBREAPER, 0, 0, 0, 0], { from });
        break;
      case 'setsid':
        builder.step(Phase.TASKS, 'setsid', [], {
          from,
          ...(actor.pid === undefined ? {} : { expected: actor.pid }),
        });
        if (actor.pid !== undefined)
          takeControllingTerminal(ctx, actor.pid, (op, args, options) => builder.step(Phase.TASKS, op, args, options));
        break;
      case 'own-group':
        builder.step(Phase.TASKS, 'setpgid', [0, 0], { from });
        break;
      case 'create': {
        const child = builders.get(action.actor);
        if (child !== undefined) builder.step(Phase.TASKS, 'clone_process', [child.index], { from: child.from });
        break;
      }
    }
  }
  if (actor.joinGroup !== undefined) builder.step(Phase.GROUPS, 'setpgid', [0, actor.joinGroup], { from });
  // the group that it leaves had to exist until the others were in it
  if (actor.moveToGroup !== undefined) builder.step(Phase.DESCRIPTORS, 'setpgid', [0, actor.moveToGroup], { from });
  if (builder.kind !== 'zombie') return;
  const image = ctx.images.tasks.find((task) => task.pid === actor.pid);
  if (image === undefined) return;
  const status = image.core.tc?.exit_code ?? 0;
  builder.step(Phase.GROUPS, 'prctl', [prctl.SET_NAME, ctx.plan.text(image.core.tc?.comm ?? ''), 0, 0, 0], {
    from: `core[${image.pid}].tc.comm`,
  });
  builder.step(Phase.DESCRIPTORS, 'exit_now', [status], { from: `core[${image.pid}].tc.exit_code` });
}

/** SIGCHLD from zombies that the restore itself has made; ones that were pending are queued again later. */
function drainChildSignals(ctx: CompileContext, task: ImageTask, builder: TaskBuilder): void {
  const zombies = ctx.images.tasks.filter((other) => other.zombie && other.entry.ppid === task.pid);
  if (zombies.length === 0) return;
  const set = ctx.plan.blob(u64Bytes(1n << BigInt(kSignalChild - 1)));
  const now = ctx.plan.blob(u64Bytes(0n, 0n));
  builder.step(Phase.THREADS, 'rt_sigtimedwait', [set, 0, now, 8], {
    from: fromOf(task),
    tolerate: [kEagain],
    note: 'SIGCHLD of the zombies just made',
  });
}

function compileAttributes(ctx: CompileContext, task: ImageTask): void {
  const builder = ctx.tasks.get(task.pid)?.builder;
  const { tc } = task.core;
  if (builder === undefined || tc === undefined || task.zombie) return;
  builder.stopped = tc.task_state === taskState.stopped;
  drainChildSignals(ctx, task, builder);
  const from = (field: string): string => `core[${task.pid}].tc.${field}`;
  if (tc.child_subreaper === true)
    builder.step(Phase.THREADS, 'prctl', [prctl.SET_CHILD_SUBREAPER, 1, 0, 0, 0], { from: from('child_subreaper') });
  const personality = tc.stasis?.personality ?? 0;
  if (personality !== 0) builder.step(Phase.THREADS, 'personality', [personality], { from: from('personality') });
  const registrations = tc.membarrier_registration_mask ?? 0;
  for (let bit = 0; bit < 32; bit += 1) {
    if ((registrations & (1 << bit)) === 0) continue;
    builder.step(Phase.THREADS, 'membarrier', [(1 << bit) >>> 0, 0, 0], { from: from('membarrier_registration_mask') });
  }
  compileOomScore(ctx, task, builder);
}

const kWriteOnly = 1;
const kCloseOnExec = 0o2000000;
const kAtFdCwd = -100;
const kEacces = 13;

function compileOomScore(ctx: CompileContext, task: ImageTask, builder: TaskBuilder): void {
  const wanted = task.core.tc?.oom_score_adj;
  const inherited = ctx.options.kernel.oomScoreAdjust;
  if (wanted === undefined || wanted === (inherited ?? 0)) return;
  const from = `core[${task.pid}].tc.oom_score_adj`;
  const slot = ctx.plan.slot('oom_score_adj');
  const value = Buffer.from(String(wanted), 'latin1');
  builder.step(
    Phase.THREADS,
    'openat',
    [kAtFdCwd, ctx.plan.text('/proc/self/oom_score_adj'), kWriteOnly | kCloseOnExec, 0],
    { from, out: slot },
  );
  builder.step(Phase.THREADS, 'write', [slot, ctx.plan.blob(value), value.length], {
    from,
    // lowering it is a privilege that not every host grants; the value is advice to the kernel
    tolerate: [kEacces],
  });
  builder.step(Phase.THREADS, 'close', [slot], { from });
}

export function fromOf(task: ImageTask): string {
  return `pstree[${task.pid}]`;
}
