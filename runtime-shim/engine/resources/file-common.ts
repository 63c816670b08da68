// What the rooms of open files share: constants of the x86-64 ABI, owners
// (F_SETOWN), and descriptors held at high numbers between phases.
import type { OpenFile } from '../../../nativecore/schema/messages.js';
import type { fown_entry } from '../../../oci-spec/images/messages.js';
import { StasisError, type Subject } from '../../errors/index.js';
import type { CompileContext } from '../compile-context.js';
import type { CapturedTask, EncodeContext } from '../encode-context.js';
import {
  Phase,
  type BlobRef,
  type Operand,
  type PhaseValue,
  type SlotRef,
  type StepOptions,
  type TaskBuilder,
} from '../plan/builder.js';
import { textOf } from '../proc-text.js';
import type { DescriptorPlace, FileRoom } from '../room.js';
import { Struct } from '../struct.js';

export const kAtFdCwd = -100;
export const kAtSymlinkNofollow = 0x100;
export const kAtEmptyPath = 0x1000;

export const kOAccessMode = 0o3;
export const kOWriteOnly = 0o1;
export const kOReadWrite = 0o2;
export const kOCreate = 0o100;
export const kOExclusive = 0o200;
export const kONoCtty = 0o400;
export const kOTruncate = 0o1000;
export const kOAppend = 0o2000;
export const kONonblock = 0o4000;
export const kOAsync = 0o20000;
export const kODirect = 0o40000;
export const kODirectory = 0o200000;
export const kONofollow = 0o400000;
export const kONoatime = 0o1000000;
export const kOCloexec = 0o2000000;
export const kOPath = 0o10000000;
export const kOTmpfile = 0o20000000;

export const kFSetFl = 4;
const kFSetSig = 10;
const kFSetOwnEx = 15;
const kFDupFdCloexec = 1030;
const kRlimitNofile = 7;
/** For mapped files that a task holds open at a time. */
const kSpareDescriptors = 256;

export const kResolveNoXdev = 1;
export const kResolveNoMagiclinks = 2;
export const kResolveNoSymlinks = 4;
export const kResolveBeneath = 8;
export const kResolveInRoot = 0x10;

export const kFileTypeMask = 0o170000;
export const kFifoType = 0o010000;
export const kCharDeviceType = 0o020000;
export const kDirectoryType = 0o040000;
export const kBlockDeviceType = 0o060000;
export const kRegularType = 0o100000;
export const kSymlinkType = 0o120000;
export const kSocketType = 0o140000;

/** Descriptor numbers above are refused: /proc/sys/fs/nr_open as shipped. */
export const kMaxDescriptor = 1 << 20;

const kPipeFsMagic = 0x50495045n;

export function fileType(file: OpenFile): number {
  return (file.stat?.mode ?? 0) & kFileTypeMask;
}

export function linkText(file: { readonly link: Uint8Array }): string {
  return textOf(file.link);
}

/** On pipefs, as opposed to a FIFO that has a name. */
export function isAnonymousPipe(file: OpenFile): boolean {
  return (
    fileType(file) === kFifoType &&
    (file.stat?.filesystemMagic === kPipeFsMagic || /^pipe:\[\d+\]$/.test(linkText(file)))
  );
}

export function isAnonInode(file: OpenFile, name: string): boolean {
  const link = linkText(file);
  return link === `anon_inode:${name}` || link === `anon_inode:[${name}]`;
}

/** "fd 7 of pid 12 (nginx)" */
export function descriptorPhrase(file: OpenFile, ctx: EncodeContext): string {
  const task = ctx.taskOfHostPid(file.hostPid);
  return task === undefined ? `fd ${file.fd} of pid ${file.hostPid}` : `fd ${file.fd} of ${taskPhrase(task)}`;
}

export function taskPhrase(task: CapturedTask): string {
  const pids =
    task.nsPid === task.raw.hostPid ? `pid ${task.nsPid}` : `pid ${task.raw.hostPid} (container pid ${task.nsPid})`;
  return `${pids} (${task.stat.comm})`;
}

/** `what`: "an epoll instance whose targets". */
export function objectToUnreadable(file: OpenFile, ctx: EncodeContext, what: string): void {
  ctx.object(
    'CAPTURE_FD_UNSUPPORTED',
    `${descriptorPhrase(file, ctx)} is ${what} cannot be read`,
    ctx.subjectOfFile(file),
  );
}

/** Owner and signal of asynchronous I/O; all zero if nobody asked for it. */
export function encodeOwner(file: OpenFile, ctx: EncodeContext): fown_entry {
  const owner = file.owner.length < 8 ? undefined : new Struct(file.owner);
  const pid = owner?.i32(4) ?? 0;
  const none = { uid: 0, euid: 0, signum: file.signal, pid_type: 0, pid: 0 };
  if (owner === undefined || pid === 0) return none;
  const task = ctx.taskOfHostPid(pid);
  if (task === undefined) {
    ctx.degrade(
      'FILE_OWNER_OUTSIDE',
      `${descriptorPhrase(file, ctx)} signals pid ${pid}, which is not in the tree; the restored file signals nobody`,
      ctx.subjectOfFile(file),
    );
    return none;
  }
  return {
    uid: file.ownerUids[0] ?? 0,
    euid: file.ownerUids[1] ?? 0,
    signum: file.signal,
    pid_type: owner.i32(0),
    pid: task.nsPid,
  };
}

/** In a task that has the descriptor, once every pid exists. */
export function compileOwner(
  owner: fown_entry,
  fd: number,
  ctx: CompileContext,
  task: TaskBuilder,
  phase: PhaseValue,
  from: string,
): void {
  if (owner.signum !== 0) task.step(phase, 'fcntl', [fd, kFSetSig, owner.signum], { from });
  if (owner.pid === 0) return;
  const wanted = Buffer.alloc(8);
  wanted.writeInt32LE(owner.pid_type, 0);
  wanted.writeInt32LE(owner.pid, 4);
  task.step(phase, 'fcntl', [fd, kFSetOwnEx, ctx.plan.blob(wanted)], { from, note: `owner ${owner.pid}` });
}

/** What F_SETFL can set; the rest of the open flags is fixed at open time. */
const kSettableFlags = kOAppend | kONonblock | kOAsync | kODirect | kONoatime;

/** `fresh` says that the description has none of them yet. */
export function setStatusFlags(
  task: TaskBuilder,
  phase: PhaseValue,
  fd: Operand,
  flags: number,
  from: string,
  fresh = true,
): void {
  const wanted = flags & kSettableFlags;
  if (wanted !== 0 || !fresh) task.step(phase, 'fcntl', [fd, kFSetFl, wanted], { from, note: 'F_SETFL' });
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value >>> 0);
  return bytes;
}

export function u64s(...values: bigint[]): Buffer {
  const bytes = Buffer.alloc(8 * values.length);
  values.forEach((value, index) => bytes.writeBigUInt64LE(BigInt.asUintN(64, value), 8 * index));
  return bytes;
}

/** struct open_how of openat2(2). */
export function openHow(flags: number, mode: number, resolve: number): Buffer {
  return u64s(BigInt(flags >>> 0), BigInt(mode), BigInt(resolve));
}
export const kOpenHowBytes = 24;

/** Images are hostile until checked: the whole set is refused, since later steps would stand on nonsense. */
export function corrupt(image: string, message: string, subject: Subject = {}): StasisError {
  return new StasisError({
    code: 'IMAGE_CORRUPT',
    message: `cannot read the images: "${image}" ${message}`,
    subject: { ...subject, image },
    hint: 'use another copy of the checkpoint',
  });
}

interface HeldDescriptors {
  next: number;
  root: SlotRef | undefined;
  /** {cur, max} of RLIMIT_NOFILE before it was raised for the sake of held descriptors. */
  inheritedLimit: BlobRef | undefined;
}
const held = new WeakMap<CompileContext, HeldDescriptors>();

function heldOf(ctx: CompileContext): HeldDescriptors {
  let state = held.get(ctx);
  if (state === undefined) {
    ctx.highFdBase = Math.max(ctx.highFdBase, lowestHeldNumber(ctx));
    state = { next: ctx.highFdBase + 1, root: undefined, inheritedLimit: undefined };
    held.set(ctx, state);
  }
  return state;
}

/**
 * The number from which on no task of the images has a descriptor. The core's
 * own and the inherited ones stay below as well, because a held descriptor is
 * put on its number with dup3, which closes what was there.
 */
function lowestHeldNumber(ctx: CompileContext): number {
  let highest = 127;
  for (const task of ctx.images.tasks)
    for (const entry of task.fds) {
      if (entry.fd >= kMaxDescriptor)
        throw corrupt('fdinfo', `names descriptor ${entry.fd}, the most is ${kMaxDescriptor - 1}`);
      highest = Math.max(highest, entry.fd);
    }
  for (const descriptor of [...ctx.options.inherited.values(), ...ctx.options.joinNamespaces.values()])
    highest = Math.max(highest, descriptor);
  return highest + 1;
}

/**
 * Moves a descriptor of the root task to a number of its own above every
 * target's, where children inherit it. The number is known when the plan is
 * compiled: heldNumber tells it.
 */
export function hold(
  ctx: CompileContext,
  low: SlotRef,
  name: string,
  from: string,
  options: { readonly keepLow?: boolean; readonly into?: SlotRef } = {},
): SlotRef {
  const state = heldOf(ctx);
  const number = state.next++;
  const slot = options.into ?? ctx.plan.slot(name);
  numbers.set(slot, number);
  const root = ctx.root.builder;
  root.step(Phase.FILES, 'dup3', [low, number, kOCloexec], { out: slot, from });
  if (options.keepLow !== true) root.step(Phase.FILES, 'close', [low], { from });
  return slot;
}

const numbers = new WeakMap<SlotRef, number>();
/** The descriptor number of a slot that hold made. */
export function heldNumber(slot: SlotRef): number | undefined {
  return numbers.get(slot);
}

/** Root directory of the tree's mount namespace, at number highFdBase in every task until phase THREADS. */
export function namespaceRoot(ctx: CompileContext): SlotRef {
  const root = heldOf(ctx).root;
  if (root === undefined)
    throw new StasisError({ code: 'BUG', message: 'cannot compile: a path is opened before phase files' });
  return root;
}

/** First steps of phase FILES: room for all descriptors, and the directory that paths of images are resolved in. */
export function compileHeldDescriptors(ctx: CompileContext): void {
  const state = heldOf(ctx);
  const task = ctx.root.builder;
  const from = 'files';
  const soft = ctx.options.kernel.rlimits?.[kRlimitNofile]?.cur ?? 1024n;
  if (BigInt(ctx.highFdBase + ctx.images.files.size + kSpareDescriptors) > soft) {
    // Two overlapping reads of {cur, max} leave {max, max} at offset 8: the soft limit becomes the hard one.
    const limits = ctx.plan.blob(new Uint8Array(0), [], 24);
    task.step(Phase.FILES, 'prlimit64', [0, kRlimitNofile, 0, ctx.plan.at(limits, 8)], { from });
    task.step(Phase.FILES, 'prlimit64', [0, kRlimitNofile, 0, ctx.plan.at(limits, 0)], { from });
    task.step(Phase.FILES, 'prlimit64', [0, kRlimitNofile, ctx.plan.at(limits, 8), 0], {
      from,
      note: 'as many descriptors as allowed',
    });
    state.inheritedLimit = limits;
  }
  const low = ctx.plan.slot('root directory, low');
  task.step(Phase.FILES, 'openat', [kAtFdCwd, ctx.plan.text('/'), kOPath | kODirectory | kOCloexec, 0], {
    out: low,
    from,
  });
  const slot = ctx.plan.slot('root directory');
  numbers.set(slot, ctx.highFdBase);
  task.step(Phase.FILES, 'dup3', [low, ctx.highFdBase, kOCloexec], { out: slot, from });
  task.step(Phase.FILES, 'close', [low], { from });
  state.root = slot;
}

/** Closes what was held, in a task whose mappings are made, and takes back the limit that made room for it. */
export function releaseHeldDescriptors(ctx: CompileContext, task: TaskBuilder, from: string): void {
  const state = heldOf(ctx);
  const { highFdBase: base, keptDescriptors: kept } = ctx;
  if (kept > 0 && task === ctx.root.builder) {
    task.step(Phase.THREADS, 'close_range', [base, base, 0], { from });
    task.step(Phase.THREADS, 'close_range', [base + 1 + kept, 0xffffffff, 0], { from });
  } else task.step(Phase.THREADS, 'close_range', [base, 0xffffffff, 0], { from });
  if (state.inheritedLimit !== undefined)
    task.step(Phase.THREADS, 'prlimit64', [0, kRlimitNofile, ctx.plan.at(state.inheritedLimit, 0), 0], { from });
}

/** Descriptors opened later than FILES, in any task: above everything the target has. */
export function moveHigh(
  ctx: CompileContext,
  task: TaskBuilder,
  phase: PhaseValue,
  low: SlotRef,
  name: string,
  from: string,
): SlotRef {
  const high = ctx.plan.slot(name);
  task.step(phase, 'fcntl', [low, kFDupFdCloexec, ctx.highFdBase + 1], { out: high, from });
  task.step(phase, 'close', [low], { from });
  return high;
}

/** Opens a path of an image below the root of the mount namespace; magic links would lead out of it. */
export function openBelowRoot(
  ctx: CompileContext,
  task: TaskBuilder,
  phase: PhaseValue,
  path: string,
  flags: number,
  from: string,
): SlotRef {
  const low = ctx.plan.slot(path);
  openStep(ctx, task, phase, path, openFlagsOf(flags), { out: low, from, note: path });
  return low;
}

/** The same in a descriptor table that is being filled, at its own number. */
export function openInPlace(
  ctx: CompileContext,
  { task, fd, isLowest, closeOnExec }: DescriptorPlace,
  path: string,
  flags: number,
  from: string,
): void {
  if (isLowest) {
    const opened = closeOnExec ? openFlagsOf(flags) : openFlagsOf(flags) & ~kOCloexec;
    openStep(ctx, task, Phase.DESCRIPTORS, path, opened, { expected: fd, from, note: path });
    return;
  }
  const low = openBelowRoot(ctx, task, Phase.DESCRIPTORS, path, flags, from);
  task.step(Phase.DESCRIPTORS, 'dup3', [low, fd, closeOnExec ? kOCloexec : 0], { from });
  task.step(Phase.DESCRIPTORS, 'close', [low], { from });
}

function openStep(
  ctx: CompileContext,
  task: TaskBuilder,
  phase: PhaseValue,
  path: string,
  flags: number,
  options: StepOptions,
): void {
  const how = howToOpen(ctx, flags);
  task.step(phase, 'openat2', [namespaceRoot(ctx), ctx.plan.text(path), how, kOpenHowBytes], options);
}

const hows = new WeakMap<CompileContext, Map<number, BlobRef>>();

function howToOpen(ctx: CompileContext, flags: number): BlobRef {
  let known = hows.get(ctx);
  if (known === undefined) hows.set(ctx, (known = new Map()));
  let how = known.get(flags);
  if (how === undefined)
    known.set(flags, (how = ctx.plan.blob(openHow(flags, 0, kResolveInRoot | kResolveNoMagiclinks))));
  return how;
}

/** Flags that make sense when a file is opened again: nothing that creates or cuts, and what openat2 accepts. */
export function openFlagsOf(flags: number): number {
  if ((flags & kOPath) !== 0) return (flags & (kOPath | kODirectory | kONofollow)) | kOCloexec;
  // A terminal among the files must not become the controlling one.
  return (flags & ~(kOCreate | kOExclusive | kOTruncate | kOAsync | kOTmpfile)) | kOCloexec | kONoCtty;
}

/**
 * The descriptor that the restoring side provides under one of these names.
 * `needed`: the images say that it comes from outside; a plan that is only
 * printed gets any number for it then.
 */
export function inheritedSlot(
  ctx: CompileContext,
  names: readonly string[],
  options: { readonly needed: boolean },
): SlotRef | undefined {
  const { inherited } = ctx.options;
  for (const name of names) {
    const descriptor = options.needed || inherited.has(name) ? inherited.get(name) : undefined;
    if (descriptor !== undefined) return ctx.plan.external(name, descriptor);
  }
  return undefined;
}

/** Holds an inherited descriptor: its low number may be one that the target wants. */
export function holdInherited(ctx: CompileContext, external: SlotRef, from: string): SlotRef {
  return hold(ctx, external, `${external.name}, held`, from, { keepLow: true });
}

/** The same, and kept until all mappings are made. Only before any file is held that is not. */
export function keepInherited(ctx: CompileContext, external: SlotRef, from: string): SlotRef {
  ctx.keptDescriptors += 1;
  return holdInherited(ctx, external, from);
}

export type FileUse = Parameters<NonNullable<FileRoom['compileInTask']>>[1];

/** Task of the plan by its index. */
export function plannedTaskAt(ctx: CompileContext, taskIndex: number): TaskBuilder {
  const task = ctx.plan.tasks[taskIndex];
  if (task === undefined)
    throw new StasisError({ code: 'BUG', message: `cannot compile: there is no task ${taskIndex}` });
  return task;
}
