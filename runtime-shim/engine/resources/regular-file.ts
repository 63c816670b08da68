// Files that are opened by their path: regular files, directories, symbolic
// links (O_PATH), memory devices; and the paths of a task that are no
// descriptors: exe, cwd, root, mapped files. Files that have no path any more
// are another room, deleted-file.ts, or refused by name.
import type { MappedFile, OpenFile, PathReference, Statx } from '../../../nativecore/schema/messages.js';
import { fd_types, type reg_file_entry } from '../../../oci-spec/images/messages.js';
import type { Subject } from '../../errors/index.js';
import type { CompileContext } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import { Phase, type Operand, type PhaseValue, type SlotRef, type TaskBuilder } from '../plan/builder.js';
import { textOf } from '../proc-text.js';
import type { FileRoom } from '../room.js';
import { encodeDeleted, imageOfDeleted, isDeleted, pathOfDeleted, reopenDeleted } from './deleted-file.js';
import {
  corrupt,
  descriptorPhrase,
  encodeOwner,
  fileType,
  hold,
  holdInherited,
  inheritedSlot,
  kDirectoryType,
  kFileTypeMask,
  kOAsync,
  kOPath,
  kRegularType,
  kSymlinkType,
  linkText,
  moveHigh,
  openBelowRoot,
  openInPlace,
  setStatusFlags,
  taskPhrase,
} from './file-common.js';

const kProcMagic = 0x9fa0n;
const kMqueueMagic = 0x19800202n;
const kNamespaceFsMagic = 0x6e736673n;
const kPidFsMagic = 0x50494446n;
const kCloneFiles = 0x400n;

const noOwner = { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 };

export const regularFileRoom: FileRoom = {
  kind: 'file',
  fdType: fd_types.REG,

  claims(file) {
    const type = fileType(file);
    if (type !== kRegularType && type !== kDirectoryType && type !== kSymlinkType) return false;
    const magic = file.stat?.filesystemMagic;
    if (magic === kMqueueMagic || magic === kNamespaceFsMagic || magic === kPidFsMagic) return false;
    const link = linkText(file);
    return link.startsWith('/') && !link.startsWith('/memfd:');
  },

  encode(file, fileId, ctx) {
    const entry = pathFileEntry(file, fileId, ctx);
    return entry === undefined ? undefined : { type: fd_types.REG, id: fileId, reg: entry };
  },

  compile(entry, ctx) {
    const file = entry.reg;
    if (file === undefined) throw corrupt('files.img', `has no path in entry ${entry.id}`);
    const from = `file[${entry.id}]`;
    const external = inheritedSlot(ctx, externalNames(file), { needed: file.ext === true });
    if (external !== undefined) return holdInherited(ctx, external, from);
    if (file.ext === true) {
      ctx.object(
        'IMAGE_FEATURE_UNSUPPORTED',
        `file "${file.name}" was outside the container, and nothing is given in its place`,
        { path: file.name, image: 'files.img' },
        'start the restore with the same standard streams as the container had',
      );
    }
    checkPath(file, entry.id);
    const task = ctx.root.builder;
    const low = reopenDeleted(ctx, file, from) ?? openBelowRoot(ctx, task, Phase.FILES, file.name, file.flags, from);
    setPosition(task, Phase.FILES, low, file, from);
    return hold(ctx, low, file.name, from);
  },

  opensInPlace({ reg }, ctx) {
    return (
      reg !== undefined &&
      reg.ext !== true &&
      !isDeleted(ctx, reg.id) &&
      inheritedSlot(ctx, externalNames(reg), { needed: false }) === undefined
    );
  },

  openInPlace({ id, reg }, place, ctx) {
    if (reg === undefined) return;
    const from = `file[${id}]`;
    checkPath(reg, id);
    openInPlace(ctx, place, reg.name, reg.flags, from);
    setPosition(place.task, Phase.DESCRIPTORS, place.fd, reg, from);
  },
};

function setPosition(task: TaskBuilder, phase: PhaseValue, fd: Operand, file: reg_file_entry, from: string): void {
  if ((file.flags & kOPath) !== 0) return;
  if (file.pos !== 0n && file.pos !== kNoPosition)
    task.step(phase, 'lseek', [fd, file.pos, 0], { expected: file.pos, from, note: `offset ${file.pos}` });
  if ((file.flags & kOAsync) !== 0) setStatusFlags(task, phase, fd, file.flags, from);
}

/** All ones: not seekable, or not known. */
const kNoPosition = 0xffffffffffffffffn;

/** Names under which a restoring side may give an external file: ours, and CRIU's without the leading slash. */
export function externalNames(file: reg_file_entry): readonly string[] {
  const names = [file.name, file.name.replace(/^\//, '')];
  return file.ext === true ? names : names.slice(1);
}

/** The images entry of an open file that has a path; undefined after objecting. */
export function pathFileEntry(file: OpenFile, fileId: number, ctx: EncodeContext): reg_file_entry | undefined {
  const name = linkText(file);
  const stat = file.stat;
  if (stat === undefined) {
    ctx.object(
      'CAPTURE_FD_UNSUPPORTED',
      `${descriptorPhrase(file, ctx)} could not be examined`,
      ctx.subjectOfFile(file),
    );
    return undefined;
  }
  const position = /^pos:\s*(\d+)/.exec(textOf(file.fdinfo))?.[1] ?? '0';
  const entry = regEntry(fileId, name, stat, file.statusFlags, BigInt(position), encodeOwner(file, ctx));
  if (!file.pathMatches) {
    // Opened outside the container before it started: its standard streams.
    if (isExternalFile(name, ctx)) return { ...entry, mnt_id: -1, ext: true };
    const image = imageOfDeleted(ctx, stat);
    if (image !== undefined) return encodeDeleted(ctx, entry, image);
    objectToLostPath(ctx, name, stat, descriptorPhrase(file, ctx), ctx.subjectOfFile(file));
    return undefined;
  }
  const stranger = dependsOnPid(name, stat, ctx);
  if (stranger !== undefined) {
    ctx.object(
      'CAPTURE_FD_UNSUPPORTED',
      `${descriptorPhrase(file, ctx)} is "${name}", a file about process ${stranger}, which does not exist yet when files are restored`,
      ctx.subjectOfFile(file),
      'let the process close it first',
    );
    return undefined;
  }
  return entry;
}

export function isExternalFile(name: string, ctx: EncodeContext): boolean {
  return ctx.options.externalFiles.has(name) || ctx.options.externalFiles.has(name.replace(/^\//, ''));
}

function regEntry(
  id: number,
  name: string,
  stat: Statx,
  flags: number,
  pos: bigint,
  fown: reg_file_entry['fown'],
): reg_file_entry {
  return {
    id,
    flags,
    pos,
    fown,
    name,
    mnt_id: Number(stat.mountId),
    ...((stat.mode & kFileTypeMask) === kRegularType ? { size: stat.sizeBytes } : {}),
    mode: stat.mode,
    build_id: [],
  };
}

/** "/proc/17/status" names a process that is not there when the root task opens files; its own is. */
function dependsOnPid(name: string, stat: Statx, ctx: EncodeContext): string | undefined {
  if (stat.filesystemMagic !== kProcMagic) return undefined;
  const pid = /^\/proc\/(\d+)(\/|$)/.exec(name)?.[1];
  return pid === undefined || Number(pid) === ctx.root.nsPid ? undefined : pid;
}

function objectToLostPath(ctx: EncodeContext, name: string, stat: Statx, what: string, subject: Subject): void {
  if (stat.linkCount === 0 || name !== pathOfDeleted(name)) {
    const path = pathOfDeleted(name);
    const isFile = (stat.mode & kFileTypeMask) === kRegularType;
    const kind = isFile ? 'file' : (stat.mode & kFileTypeMask) === kDirectoryType ? 'directory' : 'link';
    const whose = isFile && stat.linkCount > 0 ? 'which has another name' : 'whose content is in no image';
    ctx.object(
      'CAPTURE_FD_UNSUPPORTED',
      `${what} is the deleted ${kind} "${path}" (${stat.sizeBytes} bytes), ${whose}`,
      { ...subject, path },
      `let the process close it, or keep the ${kind} in place until the checkpoint is taken`,
    );
    return;
  }
  ctx.object(
    'CAPTURE_FD_UNSUPPORTED',
    `${what} is "${name}", but that path is not this file in the container (it was replaced, covered by a mount, or opened outside)`,
    { ...subject, path: name },
    'if it is a standard stream of the container, name it as an external file',
  );
}

/**
 * The file id of a path that is no descriptor: exe, cwd, root or a mapped
 * file; undefined after objecting. Equal references share one id.
 */
export function encodePathFile(
  ctx: EncodeContext,
  reference: PathReference | MappedFile,
  statusFlags: number,
  subject: Subject,
  what: string,
): number | undefined {
  const name = linkText(reference);
  const stat = reference.stat;
  if (stat === undefined) {
    ctx.object('CAPTURE_TASK_UNSUPPORTED', `${what} could not be examined`, { ...subject, path: name });
    return undefined;
  }
  const image = reference.pathMatches ? undefined : imageOfDeleted(ctx, stat);
  if (!reference.pathMatches && image === undefined) {
    const key = `${subject.hostPid ?? 0} ${what} ${name}`;
    // A library is mapped several times, and one sentence about it is enough.
    if (!toldOf(ctx, key)) objectToLostPath(ctx, name, stat, whatOf(what, subject, ctx), subject);
    return undefined;
  }
  const { id, isNew } = ctx.fileIdOfKey(`${stat.device}:${stat.inode}:${statusFlags}:${name}`);
  if (isNew) {
    const entry = regEntry(id, name, stat, statusFlags, 0n, noOwner);
    ctx.addFile({ type: fd_types.REG, id, reg: image === undefined ? entry : encodeDeleted(ctx, entry, image) });
  }
  return id;
}

const told = new WeakMap<EncodeContext, Set<string>>();

function toldOf(ctx: EncodeContext, key: string): boolean {
  let keys = told.get(ctx);
  if (keys === undefined) told.set(ctx, (keys = new Set()));
  const before = keys.size;
  return keys.add(key).size === before;
}

/** "the executable of pid 4711 (container pid 1) (nginx)" */
function whatOf(what: string, { hostPid }: Subject, ctx: EncodeContext): string {
  const task = hostPid === undefined ? undefined : ctx.taskOfHostPid(hostPid);
  const named = what.startsWith('the ') ? what : `the ${what}`;
  return task === undefined || what.includes('pid ') ? named : `${named} of ${taskPhrase(task)}`;
}

/**
 * Opens an image's path file in any task after phase FILES, at a number above
 * every target's. It is closed by the caller, or for all at the start of phase
 * THREADS. In a task that shares its descriptor table, phase DESCRIPTORS
 * becomes MEMORY: the owner is still filling the table then.
 */
export function openPathFile(
  ctx: CompileContext,
  task: TaskBuilder,
  phase: PhaseValue,
  fileId: number,
  openFlags: number,
  from: string,
): SlotRef {
  const file = pathOf(ctx, fileId, from);
  const when = phase === Phase.DESCRIPTORS && (task.cloneFlags & kCloneFiles) !== 0n ? Phase.MEMORY : phase;
  const low = openBelowRoot(ctx, task, when, file.name, openFlags, from);
  return moveHigh(ctx, task, when, low, file.name, from);
}

/** The path entry with this id, checked. */
export function pathOf(ctx: CompileContext, fileId: number, from: string): reg_file_entry {
  const file = ctx.images.files.get(fileId)?.reg;
  if (file === undefined) throw corrupt('files.img', `has no path file ${fileId}, which ${from} names`);
  checkPath(file, fileId);
  return file;
}

const kMaxPathBytes = 4096;

export function checkPath(file: Pick<reg_file_entry, 'name'>, id: number): void {
  const length = Buffer.byteLength(file.name);
  if (!file.name.startsWith('/') || length >= kMaxPathBytes || file.name.includes('\0'))
    throw corrupt('files.img', `has an unusable path in entry ${id} (${length} bytes)`, {
      path: file.name.slice(0, 80),
    });
}
