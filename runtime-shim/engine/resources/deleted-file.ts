// Regular files that no directory names any more, and that somebody has open,
// mapped, or runs. The core has put their content into ghost-file-N.img. The root
// task makes each of them again, as a file that never gets a name where the file
// system can do that; open files and mappings are opened from it through
// /proc/self/fd, with flags of their own.
import type { Statx } from '../../../nativecore/schema/messages.js';
import {
  remap_type,
  type ghost_chunk_entry,
  type ghost_file_entry,
  type reg_file_entry,
  type remap_file_path_entry,
} from '../../../oci-spec/images/messages.js';
import { ImageFormatError, readImage } from '../../../oci-spec/images/image-file.js';
import { imageCodec } from '../../../oci-spec/codecs.js';
import type { CompileContext } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import { imageFileName, type ImageSetReader } from '../image-set.js';
import { Phase, type BlobRef, type Operand, type SlotRef, type StepOptions } from '../plan/builder.js';
import {
  corrupt,
  heldNumber,
  hold,
  inheritedSlot,
  kFileTypeMask,
  kOAccessMode,
  kOCloexec,
  kOCreate,
  kODirectory,
  kOExclusive,
  kONofollow,
  kOPath,
  kOpenHowBytes,
  kOReadWrite,
  kOTmpfile,
  kRegularType,
  kResolveInRoot,
  kResolveNoMagiclinks,
  namespaceRoot,
  openFlagsOf,
  openHow,
  u64s,
} from './file-common.js';
import { kTaskEnd, vmaStatus } from './mapping-flags.js';
import { openDescriptorAgain } from './memfd.js';
import { imageNamespaceId } from './namespaces.js';

const kDeleted = ' (deleted)';

// ---- raw capture to images

/** Number of the image that has the content of this file; undefined if none has. */
export function imageOfDeleted(ctx: EncodeContext, stat: Statx): number | undefined {
  const index = ctx.capture.deletedFiles.findIndex(
    ({ device, inode }) => device === stat.device && inode === stat.inode,
  );
  return index < 0 ? undefined : index + 1;
}

/** How the path of a deleted file is told: the one that it had. */
export function pathOfDeleted(link: string): string {
  return link.endsWith(kDeleted) ? link.slice(0, -kDeleted.length) : link;
}

/** The entry of an open file or path, told where its content is. */
export function encodeDeleted(ctx: EncodeContext, entry: reg_file_entry, image: number): reg_file_entry {
  ctx.images.add('remap-fpath', undefined, {
    orig_id: entry.id,
    remap_id: image,
    remap_type: remap_type.GHOST,
  });
  // A file of O_TMPFILE keeps that flag, which has O_DIRECTORY in it: nothing to open it with once more.
  const flags = (entry.flags & kOTmpfile) === 0 ? entry.flags : entry.flags & ~(kOTmpfile | kODirectory);
  return { ...entry, name: pathOfDeleted(entry.name), flags };
}

// ---- images to plan

/** A stretch of data: where it is in the image, and where it belongs. */
export interface DeletedFileData {
  readonly imageOffset: number;
  readonly offset: number;
  readonly lengthBytes: number;
}

export interface DeletedFileImage {
  readonly name: string;
  readonly entry: ghost_file_entry;
  readonly sizeBytes: number;
  readonly data: readonly DeletedFileData[];
}

const kHeadBytes = 16 * 1024;
const kMaxChunkHeadBytes = 64;
/** Of all files together: each is two or three steps. */
const kMaxChunks = 1 << 18;
/** In images before there were types of remaps, this bit of the number says that it is one of a deleted file. */
const kOldGhostBit = 0x80000000;

export const deletedFileImageName = (id: number): string => imageFileName('ghost-file', id.toString(16));

/** Head and places of data of one image; nothing of the data is read. */
export function readDeletedFileImage(set: ImageSetReader, id: number, maximalChunks = kMaxChunks): DeletedFileImage {
  const name = deletedFileImageName(id);
  const imageBytes = set.sizeBytes(name);
  if (imageBytes === undefined) throw corrupt(name, 'is missing, and a file in "remap-fpath.img" refers to it');
  const read = (offset: number, lengthBytes: number): Uint8Array =>
    set.rawRange(name, offset, Math.min(lengthBytes, imageBytes - offset)) ?? new Uint8Array(0);
  const head = read(0, kHeadBytes);
  const first = parsed(name, () => readImage('ghost-file', head, (_message: never, rest: number) => rest)[0]);
  const entry = first?.message as unknown as ghost_file_entry | undefined;
  if (entry === undefined) throw corrupt(name, 'is empty');
  const start = head.length - (first?.payload?.length ?? 0);
  if (entry.chunks !== true) {
    const lengthBytes = imageBytes - start;
    const data = lengthBytes === 0 ? [] : [{ imageOffset: start, offset: 0, lengthBytes }];
    return { name, entry, sizeBytes: lengthBytes, data };
  }
  const size = entry.size ?? 0n;
  if (size > kTaskEnd) throw corrupt(name, `is of a file of ${size} bytes`);
  const sizeBytes = Number(size);
  const data: DeletedFileData[] = [];
  for (let at = start; at < imageBytes;) {
    const { chunk, headBytes } = readChunkHead(name, read(at, kMaxChunkHeadBytes), at);
    const imageOffset = at + headBytes;
    if (chunk.off + chunk.len > size || BigInt(imageOffset) + chunk.len > BigInt(imageBytes))
      throw corrupt(name, `has a stretch of ${chunk.len} bytes at byte ${at}, which goes past the end`);
    if (data.length === maximalChunks) throw corrupt(name, `has more than ${maximalChunks} stretches of data`);
    const lengthBytes = Number(chunk.len);
    if (lengthBytes > 0) data.push({ imageOffset, offset: Number(chunk.off), lengthBytes });
    at = imageOffset + lengthBytes;
  }
  return { name, entry, sizeBytes, data };
}

function readChunkHead(
  name: string,
  bytes: Uint8Array,
  at: number,
): { readonly chunk: ghost_chunk_entry; readonly headBytes: number } {
  const length = bytes.length < 4 ? 0 : new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  if (length === 0 || length + 4 > bytes.length) throw corrupt(name, `has no head of a stretch of data at byte ${at}`);
  try {
    return { chunk: imageCodec().decode('ghost_chunk_entry', bytes.subarray(4, 4 + length)), headBytes: 4 + length };
  } catch (error) {
    throw corrupt(name, `has no head of a stretch of data at byte ${at} (${(error as Error).message})`);
  }
}

function parsed<Value>(name: string, read: () => Value): Value {
  try {
    return read();
  } catch (error) {
    if (error instanceof ImageFormatError) throw corrupt(name, error.message);
    throw error;
  }
}

/** Image of the content by the id of the open file or path, and why others cannot be opened. */
export function deletedFilesOf(set: ImageSetReader): {
  readonly images: ReadonlyMap<number, number>;
  readonly others: ReadonlyMap<number, string>;
} {
  const images = new Map<number, number>();
  const others = new Map<number, string>();
  for (const remap of set.messages('remap-fpath')) {
    const image = imageOfRemap(remap);
    if (image !== undefined) images.set(remap.orig_id, image);
    else others.set(remap.orig_id, remap.remap_type === remap_type.PROCFS ? kOfProcess : kLinked);
  }
  return { images, others };
}
const kOfProcess = 'is about a process that had ended';
const kLinked = 'had lost its name, and was given another one for the checkpoint (--link-remap)';

function imageOfRemap({ remap_id: id, remap_type: type }: remap_file_path_entry): number | undefined {
  if (type === undefined) return (id & kOldGhostBit) === 0 ? undefined : (id & ~kOldGhostBit) >>> 0;
  return type === remap_type.GHOST ? id : undefined;
}

interface DeletedFiles {
  /** By the id of the open file or path. */
  readonly slots: ReadonlyMap<number, SlotRef>;
  /** Open for writing, for mappings; by the image. */
  readonly writable: ReadonlyMap<SlotRef, SlotRef>;
  readonly others: ReadonlyMap<number, string>;
}
const planned = new WeakMap<CompileContext, DeletedFiles>();

/**
 * Kept until all mappings are made, and not longer: to close them takes away the POSIX locks that a process has on them.
 * After what is kept longer, and before any file that is not kept.
 */
export function makeDeletedFiles(ctx: CompileContext): void {
  const { images, others } = deletedFilesOf(ctx.images.set);
  const written = idsMappedForWriting(ctx);
  const made = new Map<number, SlotRef>();
  const slots = new Map<number, SlotRef>();
  const writable = new Map<SlotRef, SlotRef>();
  let chunks = kMaxChunks;
  for (const [fileId, image] of images) {
    const file = ctx.images.files.get(fileId)?.reg;
    if (file === undefined) continue;
    let slot = made.get(image);
    if (slot === undefined) {
      const content = readDeletedFileImage(ctx.images.set, image, chunks);
      chunks -= content.data.length;
      slot = makeDeletedFile(ctx, file, content);
      if (slot === undefined) continue;
      made.set(image, slot);
    }
    slots.set(fileId, slot);
    if (!written.has(fileId) || writable.has(slot)) continue;
    const from = `file[${fileId}]`;
    const low = openDescriptorAgain(ctx, slot, kOReadWrite | kOCloexec, file.name, from);
    writable.set(slot, keep(ctx, low, `${file.name}, for writing`, from));
  }
  planned.set(ctx, { slots, writable, others });
}

function idsMappedForWriting(ctx: CompileContext): ReadonlySet<number> {
  const ids = new Set<number>();
  for (const { mm } of ctx.images.tasks)
    for (const vma of mm?.vmas ?? [])
      if ((vma.status & (vmaStatus.FILE_SHARED | vmaStatus.FILE_PRIVATE)) !== 0 && accessOf(vma.fdflags) !== 0)
        ids.add(Number(vma.shmid));
  return ids;
}

const accessOf = (flags: number | undefined): number => (flags ?? 0) & kOAccessMode;

function keep(ctx: CompileContext, low: SlotRef, name: string, from: string): SlotRef {
  ctx.keptForMappings += 1;
  return hold(ctx, low, name, from);
}

const kEnoent = 2;
const kEbadf = 9;
const kEacces = 13;
const kEnotdir = 20;
const kEisdir = 21;
const kEinval = 22;
const kEloop = 40;
const kEopnotsupp = 95;
const kPrivateMode = 0o600;
/** Below the most that sendfile(2) takes at a time (2 GiB less a page). */
const kMaxSendBytes = 1 << 30;
const kMicrosecond = 1000n;
/** A file of root's with its set-id bit would be a way to more than the spec grants, for whoever has it open and executes it. */
const kModeWithoutSetId = 0o1777;

/**
 * One number holds, in turn, the directory and the file that is made in it. A step that fails leaves it as it was,
 * and what is meant for a directory does nothing to a file (ENOTDIR): so a plan without branches takes the
 * directory of the file where that is there, and a name for a moment where there is no O_TMPFILE.
 */
function makeDeletedFile(ctx: CompileContext, file: reg_file_entry, image: DeletedFileImage): SlotRef | undefined {
  const { entry, name: imageName, sizeBytes } = image;
  if ((entry.mode & kFileTypeMask) !== kRegularType) {
    ctx.object('IMAGE_FEATURE_UNSUPPORTED', `"${file.name}" is deleted, and no regular file`, {
      path: file.name,
      image: imageName,
    });
    return undefined;
  }
  const source = inheritedSlot(ctx, [imageName], { needed: true });
  if (source === undefined) {
    ctx.object('IMAGE_MISSING', `"${imageName}" could not be opened`, { image: imageName });
    return undefined;
  }
  const from = imageName;
  const step = (op: string, args: readonly Operand[], options: Partial<StepOptions> = {}): void =>
    ctx.root.builder.step(Phase.FILES, op, args, { from, ...options });

  const low = ctx.plan.slot(`mount of ${file.name}`);
  const how = openHow(kOPath | kODirectory | kOCloexec, 0, kResolveInRoot | kResolveNoMagiclinks);
  const directoryHow: BlobRef = ctx.plan.blob(how);
  const openDirectory = (path: string, options: Partial<StepOptions>): void =>
    step('openat2', [namespaceRoot(ctx), ctx.plan.text(path), directoryHow, kOpenHowBytes], { note: path, ...options });
  openDirectory(mountPointOf(ctx, file), { out: low });
  const slot = keep(ctx, low, file.name, from);
  const number = heldNumber(slot) ?? -1;
  const put = (descriptor: SlotRef): void => {
    step('dup3', [descriptor, number, kOCloexec], { tolerate: [kEbadf] });
    step('close', [descriptor], { tolerate: [kEbadf] });
  };
  const directory = ctx.plan.slot(`directory of ${file.name}`);
  openDirectory(directoryOf(file.name), { out: directory, tolerate: [kEnoent, kEnotdir, kEloop, kEacces] });
  put(directory);
  const place = ctx.plan.slot(`place of ${file.name}`);
  step('dup', [number], { out: place });

  const nameless = ctx.plan.slot(`${file.name}, without a name`);
  step('openat', [number, ctx.plan.text('.'), kOTmpfile | kODirectory | kOReadWrite | kOCloexec, kPrivateMode], {
    out: nameless,
    tolerate: [kEopnotsupp, kEisdir, kEinval, kEnoent],
    note: 'O_TMPFILE',
  });
  put(nameless);
  const momentary = ctx.plan.text(momentaryName(entry));
  // Of a restore that was killed between the next two.
  step('unlinkat', [number, momentary, 0], { tolerate: [kEnoent, kEnotdir] });
  const named = ctx.plan.slot(`${file.name}, with a name`);
  step('openat', [number, momentary, kOCreate | kOExclusive | kOReadWrite | kONofollow | kOCloexec, kPrivateMode], {
    out: named,
    tolerate: [kEnotdir],
    note: 'where there is no O_TMPFILE',
  });
  step('unlinkat', [place, momentary, 0], { tolerate: [kEnoent] });
  put(named);
  step('close', [place]);

  if (sizeBytes > 0) step('ftruncate', [number, sizeBytes]);
  fill(image, source, number, step);
  // The group may be that of the directory.
  step('fchown', [number, entry.uid, entry.gid]);
  step('fchmod', [number, entry.mode & kModeWithoutSetId]);
  if (entry.atim !== undefined && entry.mtim !== undefined) {
    const times = u64s(
      entry.atim.tv_sec,
      entry.atim.tv_usec * kMicrosecond,
      entry.mtim.tv_sec,
      entry.mtim.tv_usec * kMicrosecond,
    );
    step('utimensat', [number, 0, ctx.plan.blob(times), 0]);
  }
  // A file that is open for writing cannot be a program's.
  const again = openDescriptorAgain(ctx, slot, kOCloexec, file.name, from);
  put(again);
  return slot;
}

function fill(
  { data }: DeletedFileImage,
  source: SlotRef,
  number: number,
  step: (op: string, args: readonly Operand[], options?: Partial<StepOptions>) => void,
): void {
  let at = -1;
  let to = -1;
  for (const stretch of data)
    for (let done = 0; done < stretch.lengthBytes; done += kMaxSendBytes) {
      const count = Math.min(kMaxSendBytes, stretch.lengthBytes - done);
      const imageOffset = stretch.imageOffset + done;
      const offset = stretch.offset + done;
      if (at !== imageOffset) step('lseek', [source, imageOffset, 0], { expected: imageOffset });
      if (to !== offset) step('lseek', [number, offset, 0], { expected: offset });
      step('sendfile', [number, source, 0, count], { expected: count, note: `${count} bytes at ${offset}` });
      at = imageOffset + count;
      to = offset + count;
    }
}

const directoryOf = (path: string): string => path.slice(0, Math.max(1, path.lastIndexOf('/')));

function mountPointOf(ctx: CompileContext, file: reg_file_entry): string {
  const namespace = imageNamespaceId(ctx, 'mnt');
  if (namespace === undefined) return '/';
  const mounts = ctx.images.set.messages('mountpoints', namespace);
  return mounts.find(({ mnt_id: id }) => id === file.mnt_id)?.mountpoint ?? '/';
}

/** The same for each restore of one checkpoint: what is left behind is found again. */
function momentaryName({ dev, ino }: ghost_file_entry): string {
  return `.stasis-deleted-${(dev ?? 0).toString(16)}-${(ino ?? 0n).toString(16)}`;
}

const deletedOf = (ctx: CompileContext): DeletedFiles =>
  planned.get(ctx) ?? { slots: new Map(), writable: new Map(), others: new Map() };

export const isDeleted = (ctx: CompileContext, fileId: number): boolean => deletedOf(ctx).slots.has(fileId);

/** Another open file of it, with these flags; undefined if this is none. */
export function reopenDeleted(ctx: CompileContext, file: reg_file_entry, from: string): SlotRef | undefined {
  const { slots, others } = deletedOf(ctx);
  const other = others.get(file.id);
  if (other !== undefined)
    ctx.object('IMAGE_FEATURE_UNSUPPORTED', `file "${file.name}" ${other}`, {
      path: file.name,
      image: 'remap-fpath.img',
    });
  const slot = slots.get(file.id);
  if (slot === undefined) return undefined;
  const flags = openFlagsOf(file.flags) & ~(kODirectory | kONofollow);
  return openDescriptorAgain(ctx, slot, flags, file.name, from);
}

/** What a mapping of it is made from, in every task; undefined if this is none. */
export function mappedDeleted(ctx: CompileContext, fileId: number, flags: number): SlotRef | undefined {
  const { slots, writable } = deletedOf(ctx);
  const slot = slots.get(fileId);
  return slot === undefined || accessOf(flags) === 0 ? slot : writable.get(slot);
}
