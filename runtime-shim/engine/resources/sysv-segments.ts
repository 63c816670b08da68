// System V shared memory segments of the container's own IPC namespace: keys,
// ids, owners, modes. The root task makes them; their content and mappings are
// those of other shared memory. Who created them, when they were used last and
// by whom, is lost.
import type { IpcNamespace } from '../../../nativecore/schema/messages.js';
import type { ipc_shm_entry, vma_entry } from '../../../oci-spec/images/messages.js';
import type { CompileContext } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import { Phase, type TaskBuilder } from '../plan/builder.js';
import { Struct } from '../struct.js';
import { corrupt, kAtFdCwd, kOCloexec, kOWriteOnly } from './file-common.js';
import { kPageBytes, kTaskEnd, prot } from './mapping-flags.js';
import { namespaceOf } from './namespaces.js';
import { sharedObjects } from './shared-objects.js';
import { insideGid, insideUid } from './user-namespace.js';

const kModeBits = 0o777;
/** Removed, but still attached (SHM_DEST), and locked in memory (SHM_LOCKED): flags in the mode. */
const kRemoved = 0o1000;
const kLocked = 0o2000;
const kIpcCreate = 0o1000;
const kIpcExclusive = 0o2000;
const kIpcRemove = 0;
const kIpcSet = 1;
const kShmLock = 11;
const kShmReadOnly = 0o10000;
const kShmExecute = 0o100000;

// ---- raw capture to images

/** Are the segments that tasks have attached those of a namespace that is carried? */
export function ownsSegments(ctx: EncodeContext): boolean {
  const namespace = namespaceOf(ctx, 'ipc');
  return namespace !== undefined && !namespace.own && namespace.externalKey === undefined;
}

/** Lines of /proc/sysvipc/shm: key shmid perms size cpid lpid nattch uid gid cuid cgid ... */
export function encodeSegments(ctx: EncodeContext, namespaceId: number, table: IpcNamespace['sysvipcShm']): void {
  const known = new Set(
    sharedObjects(ctx.capture)
      .filter(({ kind }) => kind === 'segment')
      .map(({ shmid }) => shmid),
  );
  for (const line of Buffer.from(table).toString('latin1').split('\n').slice(1)) {
    const fields = line.trim().split(/\s+/);
    if (fields.length < 11) continue;
    const number = (index: number): number => Number(fields[index]);
    const id = number(1);
    if (!known.has(BigInt(id))) {
      ctx.object(
        'CAPTURE_NAMESPACE_UNSUPPORTED',
        `the System V shared memory segment ${id} is made of huge pages, or its content could not be read`,
        ctx.subjectOfTask(ctx.root),
        'remove it with ipcrm in the container, or stop the program that uses it',
      );
      continue;
    }
    const desc = {
      key: number(0) >>> 0,
      uid: insideUid(ctx, number(7)),
      gid: insideGid(ctx, number(8)),
      cuid: insideUid(ctx, number(9)),
      cgid: insideGid(ctx, number(10)),
      mode: Number.parseInt(fields[2] ?? '0', 8),
      id,
    };
    if (desc.cuid !== 0 && desc.cuid !== desc.uid)
      ctx.degrade(
        'SEGMENT_CREATOR_LOST',
        `the System V shared memory segment ${id} was created by uid ${desc.cuid}; only its owner, uid ${desc.uid}, may change it after a restore`,
        ctx.subjectOfTask(ctx.root),
      );
    ctx.images.add('ipcns-shm', namespaceId, { desc, size: BigInt(fields[3] ?? 0), in_pagemaps: true });
  }
}

// ---- images to plan

export interface PlannedSegment {
  readonly entry: ipc_shm_entry;
  readonly id: number;
}
const planned = new WeakMap<CompileContext, PlannedSegment[]>();

export const plannedSegments = (ctx: CompileContext): readonly PlannedSegment[] => planned.get(ctx) ?? [];

/** Makes the segments, through the caller's /proc, in which the ids are chosen. */
export function compileSegments(ctx: CompileContext, namespaceId: number): void {
  const image = `ipcns-shm-${namespaceId}.img`;
  const task = ctx.root.builder;
  const segments: PlannedSegment[] = [];
  for (const entry of ctx.images.set.messages('ipcns-shm', namespaceId)) {
    const { desc } = entry;
    const { id } = desc;
    if (entry.in_pagemaps !== true || (entry.hugetlb_flag ?? 0) !== 0) {
      const what = entry.in_pagemaps === true ? 'is made of huge pages (hugetlb)' : 'has its content in an old form';
      ctx.object('IMAGE_FEATURE_UNSUPPORTED', `the System V shared memory segment ${id} ${what}`, { image });
      continue;
    }
    if (id > 0x7fffffff || entry.size === 0n || entry.size > kTaskEnd || segments.some((other) => other.id === id))
      throw corrupt(image, `has an impossible segment ${id}`);
    const from = `ipcns-shm[${id}]`;
    const file = ctx.plan.slot('kernel/shm_next_id');
    const text = Buffer.from(`${id}`, 'latin1');
    const path = ctx.plan.text('/proc/sys/kernel/shm_next_id');
    task.step(Phase.NAMESPACES, 'openat', [kAtFdCwd, path, kOWriteOnly | kOCloexec, 0], { out: file, from });
    task.step(Phase.NAMESPACES, 'write', [file, ctx.plan.blob(text), text.length], { expected: text.length, from });
    task.step(Phase.NAMESPACES, 'close', [file], { from });
    const key = (desc.mode & kRemoved) === 0 ? desc.key : 0; // nobody finds a removed one by its key
    const flags = kIpcCreate | kIpcExclusive | (desc.mode & kModeBits);
    task.step(Phase.NAMESPACES, 'shmget', [key, entry.size, flags], { from, expected: id, note: `key ${desc.key}` });
    task.step(Phase.NAMESPACES, 'shmctl', [id, kIpcSet, ctx.plan.blob(ownersOf(entry))], {
      from,
      note: 'IPC_SET',
    });
    segments.push({ entry, id });
  }
  planned.set(ctx, segments);
}

/** struct shmid64_ds, of which IPC_SET takes uid, gid and mode. */
function ownersOf({ desc }: ipc_shm_entry): Uint8Array {
  return new Struct(112)
    .setU32(4, desc.uid)
    .setU32(8, desc.gid)
    .setU32(20, desc.mode & kModeBits).bytes;
}

export function segmentBytes({ entry }: PlannedSegment): bigint {
  return ((entry.size + kPageBytes - 1n) / kPageBytes) * kPageBytes;
}

/** Attaches a whole segment where the task had it; false if it had only a part of it, which is mapped in another way. */
export function attachSegment(builder: TaskBuilder, vma: vma_entry, sizeBytes: bigint, from: string): boolean {
  if (vma.pgoff !== 0n || vma.end - vma.start !== sizeBytes) return false;
  const readOnly = vma.fdflags !== undefined && (vma.fdflags & 3) === 0 && (vma.prot & prot.WRITE) === 0;
  const execute = (vma.prot & prot.EXEC) !== 0;
  const flags = (readOnly ? kShmReadOnly : 0) | (execute ? kShmExecute : 0);
  builder.step(Phase.MEMORY, 'shmat', [vma.shmid, vma.start, flags], { from, expected: vma.start });
  const granted = prot.READ | (readOnly ? 0 : prot.WRITE) | (execute ? prot.EXEC : 0);
  if (vma.prot !== granted)
    builder.step(Phase.MEMORY, 'mprotect', [vma.start, vma.end - vma.start, vma.prot], { from });
  return true;
}

/** When everybody has attached what is theirs. */
export function finishSegments(ctx: CompileContext): void {
  const task = ctx.root.builder;
  for (const { entry, id } of plannedSegments(ctx)) {
    const from = `ipcns-shm[${id}]`;
    if ((entry.desc.mode & kLocked) !== 0)
      task.step(Phase.CREDENTIALS, 'shmctl', [id, kShmLock, 0], { from, note: 'SHM_LOCK' });
    if ((entry.desc.mode & kRemoved) !== 0)
      task.step(Phase.CREDENTIALS, 'shmctl', [id, kIpcRemove, 0], { from, note: 'IPC_RMID' });
  }
}
