// What a capture may not contain, as far as whole tasks are concerned: found
// here, named, and reported together with everything that the rooms find.
import type { CapturedTask, EncodeContext } from './encode-context.js';

/** Namespaces that all tasks must share with the root: one of each kind is carried. */
const kSharedNamespaces = ['pid', 'user', 'mnt', 'net', 'ipc', 'uts', 'cgroup', 'time'] as const;

const kSeccompReturnConstant = 0x06; // BPF_RET | BPF_K
const kSeccompActionMask = 0xffff0000;
const kSeccompUserNotify = 0x7fc00000;

export function checkTree(ctx: EncodeContext): void {
  for (const stranger of ctx.capture.strangers) {
    const comm = Buffer.from(stranger.comm).toString('utf8').trim();
    ctx.object(
      'CAPTURE_TASK_UNSUPPORTED',
      `pid ${stranger.hostPid} (${comm}) is in the container's cgroup but not a descendant of its init`,
      { hostPid: stranger.hostPid, comm },
      'end processes that were started from outside ("exec") first',
    );
  }
  for (const note of ctx.capture.notes) ctx.degrade('CAPTURE_INCOMPLETE', note, {});
}

export function checkTask(ctx: EncodeContext, task: CapturedTask): void {
  const { raw } = task;
  const refuse = (reason: string, hint?: string): void =>
    ctx.object('CAPTURE_TASK_UNSUPPORTED', `${name(task)} ${reason}`, ctx.subjectOfTask(task), hint);
  if (raw.zombie) {
    if (raw.threads.length > 1) refuse('has exited in its first thread while others go on', 'wait until it has exited');
    return;
  }
  if (raw.compat) refuse('runs 32-bit code', 'use a 64-bit program');
  if (raw.sharesVm) refuse('shares its memory with another process (CLONE_VM, or a vfork in progress)', 'try again');
  if (raw.sharesFs) refuse('shares root, working directory and umask with another process (CLONE_FS)');
  if (raw.sharesSighand) refuse('shares its signal handlers with another process (CLONE_SIGHAND)');
  if (raw.ptracedBy !== 0) refuse(`is traced by pid ${raw.ptracedBy}`, 'detach the debugger first');
  checkNamespaces(ctx, task);
  checkSeccomp(ctx, task);
  for (const thread of raw.threads) {
    const label = Buffer.from(thread.securityLabel).toString('latin1').replace(/\0/g, '').trim();
    if (label !== '' && label !== 'kernel' && !label.includes('unconfined')) {
      refuse(`is confined by the security label "${label}"`, 'security labels are not carried yet');
      break;
    }
  }
}

function checkNamespaces(ctx: EncodeContext, task: CapturedTask): void {
  const { root } = ctx;
  const inodeOf = (of: CapturedTask, kind: string): bigint | undefined =>
    of.raw.namespaces.find((namespace) => namespace.kind === kind)?.inode;
  for (const kind of kSharedNamespaces) {
    const own = inodeOf(task, kind);
    const wanted = inodeOf(root, kind);
    if (own !== undefined && wanted !== undefined && own !== wanted) {
      ctx.object(
        'CAPTURE_NAMESPACE_UNSUPPORTED',
        `${name(task)} is in another ${kind} namespace (${own}) than the first process of the tree (${wanted})`,
        ctx.subjectOfTask(task),
      );
    }
    const forChildren = inodeOf(task, `${kind}_for_children`);
    if (forChildren !== undefined && own !== undefined && forChildren !== own) {
      ctx.object(
        'CAPTURE_NAMESPACE_UNSUPPORTED',
        `${name(task)} has unshared a ${kind} namespace for its future children`,
        ctx.subjectOfTask(task),
      );
    }
  }
  const time = inodeOf(task, 'time');
  if (time !== undefined && !ctx.isOwnNamespace('time', time) && hasTimeOffset(task)) {
    ctx.object(
      'CAPTURE_NAMESPACE_UNSUPPORTED',
      `${name(task)} is in a time namespace with clock offsets`,
      ctx.subjectOfTask(task),
      'run the container without a time namespace',
    );
  }
}

/** timens_offsets: "monotonic <seconds> <nanoseconds>" and the same for boottime. */
function hasTimeOffset(task: CapturedTask): boolean {
  const lines = Buffer.from(task.raw.timensOffsets).toString('latin1').trim().split('\n');
  return lines.some((line) =>
    line
      .trim()
      .split(/\s+/)
      .slice(1)
      .some((value) => Number(value) !== 0),
  );
}

function checkSeccomp(ctx: EncodeContext, task: CapturedTask): void {
  const filters = new Set(task.raw.threads.flatMap((thread) => thread.seccompFilters));
  for (const index of filters) {
    const filter = ctx.capture.seccompFilters[index];
    if (filter === undefined || !notifiesUserSpace(filter.program)) continue;
    ctx.object(
      'CAPTURE_TASK_UNSUPPORTED',
      `${name(task)} has a seccomp filter that asks a supervisor (SECCOMP_RET_USER_NOTIF)`,
      ctx.subjectOfTask(task),
      'the connection to the supervisor cannot be made again; use a profile without notification',
    );
    return;
  }
}

/** struct sock_filter: code u16, jt u8, jf u8, k u32. */
function notifiesUserSpace(program: Uint8Array): boolean {
  const view = new DataView(program.buffer, program.byteOffset, program.byteLength);
  for (let at = 0; at + 8 <= program.length; at += 8) {
    if (view.getUint16(at, true) !== kSeccompReturnConstant) continue;
    if ((view.getUint32(at + 4, true) & kSeccompActionMask) >>> 0 === kSeccompUserNotify) return true;
  }
  return false;
}

/** "pid 4711 (nginx)", with the pid in the container where it differs. */
export function name(task: CapturedTask): string {
  const inside = task.nsPid === task.raw.hostPid ? '' : `, container pid ${task.nsPid}`;
  return `pid ${task.raw.hostPid} (${task.stat.comm}${inside})`;
}
