// memfds: files of memfd_create(2), open, mapped, or both. The object is made
// by the root task; every open file and every read-only mapping gets it through
// /proc/self/fd, as the program must have got it. Its content is filled like
// that of other shared memory; seals come last, as they forbid that.
import type { MappedFile } from '../../../nativecore/schema/messages.js';
import {
  fd_types,
  type memfd_file_entry,
  type memfd_inode_entry,
  type vma_entry,
} from '../../../oci-spec/images/messages.js';
import type { CompileContext } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import { Phase, type SlotRef } from '../plan/builder.js';
import type { FileRoom, Room } from '../room.js';
import {
  corrupt,
  encodeOwner,
  hold,
  kAtFdCwd,
  kOAccessMode,
  kOAsync,
  kOCloexec,
  kODirectory,
  kOPath,
  kOReadWrite,
  heldNumber,
  openFlagsOf,
  setStatusFlags,
} from './file-common.js';
import { kTaskEnd, vmaStatus } from './mapping-flags.js';
import { sharedObjectOf, type SharedObject } from './shared-objects.js';
import { insideGid, insideUid } from './user-namespace.js';

const kPrefix = '/memfd:';
const kDeleted = ' (deleted)';
const kMfdCloexec = 1;
const kMfdAllowSealing = 2;
const kFAddSeals = 1033;
/** What a memfd has that was made without MFD_ALLOW_SEALING. */
const kSealSeal = 1;
const kUsualMode = 0o777;
const kMaxNameBytes = 249;

const noOwner = { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 };

// ---- raw capture to images

const inodes = new WeakMap<EncodeContext, Map<SharedObject, number>>();

/** Number of the object in memfd.img, which gets its entry when it is asked for first. */
function inodeIdOf(ctx: EncodeContext, object: SharedObject): number {
  let known = inodes.get(ctx);
  if (known === undefined) inodes.set(ctx, (known = new Map()));
  let id = known.get(object);
  if (id !== undefined) return id;
  known.set(object, (id = known.size + 1));
  const { raw } = object;
  const link = Buffer.from(raw.link).toString('utf8');
  const name = link.slice(
    object.kind === 'memfd' ? kPrefix.length : 0,
    link.endsWith(kDeleted) ? -kDeleted.length : undefined,
  );
  ctx.images.add('memfd', undefined, {
    name,
    uid: insideUid(ctx, raw.stat?.uid ?? 0),
    gid: insideGid(ctx, raw.stat?.gid ?? 0),
    size: raw.stat?.sizeBytes ?? 0n,
    shmid: Number(object.shmid),
    seals: raw.seals,
    inode_id: BigInt(id),
    mode: raw.stat?.mode ?? 0,
  });
  return id;
}

/** The file id of a mapping: mapped files have an entry like open ones. */
export function encodeMappedMemfd(ctx: EncodeContext, object: SharedObject, flags: number): number {
  const { id, isNew } = ctx.fileIdOfKey(`memfd:${object.shmid}:${flags}`);
  if (isNew)
    ctx.addFile({
      type: fd_types.MEMFD,
      id,
      memfd: { id, flags, pos: 0n, fown: noOwner, inode_id: inodeIdOf(ctx, object) },
    });
  return id;
}

export const memfdRoom: FileRoom = {
  kind: 'memfd',
  fdType: fd_types.MEMFD,

  claims: (file, ctx) => memfdOf(ctx, file) !== undefined,

  encode(file, fileId, ctx) {
    const object = memfdOf(ctx, file);
    if (object === undefined) return undefined;
    const position = /^pos:\s*(\d+)/m.exec(Buffer.from(file.fdinfo).toString('latin1'))?.[1] ?? '0';
    return {
      type: fd_types.MEMFD,
      id: fileId,
      memfd: {
        id: fileId,
        flags: file.statusFlags,
        pos: BigInt(position),
        fown: encodeOwner(file, ctx),
        inode_id: inodeIdOf(ctx, object),
      },
    };
  },

  compile(entry, ctx) {
    const file = entry.memfd;
    if (file === undefined) throw corrupt('files.img', `has no memfd in entry ${entry.id}`);
    const from = `file[${entry.id}]`;
    const low = reopen(ctx, file, from);
    const task = ctx.root.builder;
    if ((file.flags & kOPath) === 0) {
      if (file.pos !== 0n)
        task.step(Phase.FILES, 'lseek', [low, file.pos, 0], { expected: file.pos, from, note: `offset ${file.pos}` });
      if ((file.flags & kOAsync) !== 0) setStatusFlags(task, Phase.FILES, low, file.flags, from);
    }
    return hold(ctx, low, `memfd ${entry.id}`, from);
  },
};

function memfdOf(ctx: EncodeContext, file: Pick<MappedFile, 'link' | 'stat'>): SharedObject | undefined {
  const object = sharedObjectOf(ctx.capture, file);
  return object?.kind === 'memfd' ? object : undefined;
}

// ---- images to plan

export interface PlannedMemfd {
  readonly entry: memfd_inode_entry;
  /** Open for reading and writing in the root task, until it has been filled and sealed. */
  readonly slot: SlotRef;
}

interface Memfds {
  /** Those that are no memfds, see isAnonymous. */
  readonly anonymous: Map<bigint, memfd_inode_entry>;
  directory: SlotRef | undefined;
  readonly objects: Map<bigint, PlannedMemfd>;
  /** What mappings are made from, by file and access. */
  readonly mapped: Map<string, SlotRef>;
}
const planned = new WeakMap<CompileContext, Memfds>();

function memfdsOf(ctx: CompileContext): Memfds {
  let memfds = planned.get(ctx);
  if (memfds === undefined)
    planned.set(ctx, (memfds = { anonymous: new Map(), directory: undefined, objects: new Map(), mapped: new Map() }));
  return memfds;
}

export const plannedMemfds = (ctx: CompileContext): readonly PlannedMemfd[] => [...memfdsOf(ctx).objects.values()];

/** The way to open a memfd once more. In the caller's /proc, so before the mounts: the tree need not have one. */
export const memfdDirectoryRoom: Room = {
  kind: 'memfd-directory',
  compile(ctx) {
    const { set } = ctx.images;
    if (set.entries('memfd').length === 0 && set.entries('remap-fpath').length === 0) return;
    const directory = ctx.plan.slot('/proc/self/fd');
    ctx.root.builder.step(
      Phase.NAMESPACES,
      'openat',
      [kAtFdCwd, ctx.plan.text('/proc/self/fd'), kOPath | kODirectory | kOCloexec, 0],
      { out: directory, from: 'memfd' },
    );
    memfdsOf(ctx).directory = directory;
  },
};

/**
 * The format has shared anonymous memory as a memfd of this name, which nobody
 * has open. (CRIU restores it as one; with the entries of its older releases,
 * ANON_SHARED, it waits for ever where processes have mapped in another order.)
 */
function anonymousEntries(ctx: CompileContext): ReadonlySet<bigint> {
  const inodeOf = (fileId: number): bigint => BigInt(ctx.images.files.get(fileId)?.memfd?.inode_id ?? 0);
  const used = new Set<bigint>();
  for (const task of ctx.images.tasks) {
    for (const { id } of task.fds) used.add(inodeOf(id));
    for (const vma of task.mm?.vmas ?? [])
      if ((vma.status & vmaStatus.MEMFD) !== 0 && (vma.status & vmaStatus.FILE_PRIVATE) !== 0)
        used.add(inodeOf(Number(vma.shmid)));
  }
  return new Set(
    ctx.images.set
      .messages('memfd')
      .filter((entry) => entry.name === kAnonymousName && entry.seals === kSealSeal && !used.has(entry.inode_id))
      .map((entry) => entry.inode_id),
  );
}
const kAnonymousName = '/dev/zero';

/** The anonymous object that a mapping belongs to. */
export function anonymousOf(ctx: CompileContext, vma: vma_entry): memfd_inode_entry | undefined {
  if ((vma.status & vmaStatus.MEMFD) === 0) return undefined;
  const file = ctx.images.files.get(Number(vma.shmid))?.memfd;
  return file === undefined ? undefined : memfdsOf(ctx).anonymous.get(BigInt(file.inode_id));
}

/** Makes the objects, before any other file: what is kept for mappings and seals has the lowest of the high numbers. */
export function openMemfds(ctx: CompileContext): void {
  const { anonymous, objects, mapped } = memfdsOf(ctx);
  const task = ctx.root.builder;
  const unnamed = anonymousEntries(ctx);
  for (const entry of ctx.images.set.messages('memfd')) {
    const from = `memfd[${entry.inode_id}]`;
    if (entry.hugetlb_flag !== undefined && entry.hugetlb_flag !== 0) {
      ctx.object('IMAGE_FEATURE_UNSUPPORTED', `the memfd "${entry.name}" is made of huge pages (hugetlb)`, {
        image: 'memfd.img',
      });
    }
    if (Buffer.byteLength(entry.name) > kMaxNameBytes || entry.size > kTaskEnd || objects.has(entry.inode_id))
      throw corrupt('memfd.img', `has an impossible entry ${entry.inode_id}`);
    if (unnamed.has(entry.inode_id)) {
      anonymous.set(entry.inode_id, entry);
      continue;
    }
    const low = ctx.plan.slot(`memfd ${entry.name}, low`);
    const flags = kMfdCloexec | (entry.seals === kSealSeal ? 0 : kMfdAllowSealing);
    task.step(Phase.FILES, 'memfd_create', [ctx.plan.text(entry.name), flags], { out: low, from, note: entry.name });
    if (entry.size > 0n) task.step(Phase.FILES, 'ftruncate', [low, entry.size], { from });
    objects.set(entry.inode_id, { entry, slot: keep(ctx, low, `memfd ${entry.name}`, from) });
  }
  for (const { image } of ctx.tasks.values())
    for (const vma of image.mm?.vmas ?? []) {
      if ((vma.status & vmaStatus.MEMFD) === 0 || anonymousOf(ctx, vma) !== undefined) continue;
      const access = (vma.fdflags ?? kOReadWrite) & kOAccessMode;
      const id = mappedKey(vma);
      if (mapped.has(id)) continue;
      const file = ctx.images.files.get(Number(vma.shmid))?.memfd;
      const from = `mm[${image.pid}].vma[${vma.start.toString(16)}]`;
      if (file === undefined) throw corrupt('files.img', `has no memfd ${vma.shmid}, which ${from} names`);
      // What the mapping says; the file of one by CRIU may say less.
      mapped.set(
        id,
        access === kOReadWrite
          ? objectOf(ctx, file, from).slot
          : keep(ctx, reopen(ctx, { ...file, flags: access }, from), 'memfd, read-only', from),
      );
    }
}

/** One descriptor for each object and way of access. */
function mappedKey(vma: vma_entry): string {
  return `${vma.shmid}:${(vma.fdflags ?? kOReadWrite) & kOAccessMode}`;
}

function keep(ctx: CompileContext, low: SlotRef, name: string, from: string): SlotRef {
  ctx.keptDescriptors += 1;
  return hold(ctx, low, name, from);
}

function objectOf(ctx: CompileContext, file: memfd_file_entry, from: string): PlannedMemfd {
  const object = memfdsOf(ctx).objects.get(BigInt(file.inode_id));
  if (object === undefined) throw corrupt('memfd.img', `has no object ${file.inode_id}, which ${from} names`);
  return object;
}

/** Another open file of the same memory. */
function reopen(ctx: CompileContext, file: memfd_file_entry, from: string): SlotRef {
  const { slot, entry } = objectOf(ctx, file, from);
  return openDescriptorAgain(ctx, slot, openFlagsOf(file.flags), `memfd ${entry.name}`, from);
}

/** Another open file of what a held descriptor of the root task refers to, without its name. */
export function openDescriptorAgain(
  ctx: CompileContext,
  slot: SlotRef,
  openFlags: number,
  name: string,
  from: string,
): SlotRef {
  const { directory } = memfdsOf(ctx);
  if (directory === undefined) throw corrupt('memfd.img', `has no entries, and ${from} names one`);
  const low = ctx.plan.slot(`${name}, opened again`);
  const number = ctx.plan.text(`${heldNumber(slot) ?? -1}`);
  ctx.root.builder.step(Phase.FILES, 'openat', [directory, number, openFlags, 0], { out: low, from, note: name });
  return low;
}

/** The descriptor that a mapping of this file is made from, in every task. */
export function mappedMemfd(ctx: CompileContext, vma: vma_entry): SlotRef | undefined {
  return memfdsOf(ctx).mapped.get(mappedKey(vma));
}

/** When all files are open: what could have been in the way of opening them. When all is filled and mapped: the seals. */
export function finishMemfds(ctx: CompileContext): void {
  const { directory } = memfdsOf(ctx);
  const task = ctx.root.builder;
  for (const { entry, slot } of plannedMemfds(ctx)) {
    const from = `memfd[${entry.inode_id}]`;
    if (entry.uid !== 0 || entry.gid !== 0) task.step(Phase.FILES, 'fchown', [slot, entry.uid, entry.gid], { from });
    const mode = (entry.mode ?? kUsualMode) & 0o7777;
    if (mode !== kUsualMode) task.step(Phase.FILES, 'fchmod', [slot, mode], { from });
    if (entry.seals > kSealSeal)
      task.step(Phase.CREDENTIALS, 'fcntl', [slot, kFAddSeals, entry.seals], { from, note: 'F_ADD_SEALS' });
  }
  if (directory !== undefined) task.step(Phase.FILES, 'close', [directory], { from: 'memfd' });
  if (ctx.keptDescriptors > 0) {
    const first = ctx.highFdBase + 1;
    task.step(Phase.CREDENTIALS, 'close_range', [first, first + ctx.keptDescriptors - 1, 0], { from: 'memfd' });
  }
}
