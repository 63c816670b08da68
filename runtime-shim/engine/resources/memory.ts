// Memory: mappings, the fields of the mm, vdso, and where the page data of
// private memory goes. What processes share has a room of its own.
import { createHash } from 'node:crypto';
import type { MappedFile } from '../../../nativecore/schema/messages.js';
import type { mm_entry, vma_entry } from '../../../oci-spec/images/messages.js';
import { name } from '../capture-limits.js';
import type { CompileContext, ImageTask, PlannedTask } from '../compile-context.js';
import type { CapturedTask, EncodeContext } from '../encode-context.js';
import { chooseHole } from '../plan/hole.js';
import { Phase, type SlotRef, type TaskBuilder } from '../plan/builder.js';
import { readPages } from '../page-frames.js';
import { parseSmaps, type SmapsEntry } from '../proc-text.js';
import type { Room } from '../room.js';
import { Struct } from '../struct.js';
import {
  adviceOfFlag,
  isOurs,
  kMadviseGuardInstall,
  kPageBytes,
  kTaskEnd,
  mapFlag,
  prot,
  unsupportedMapping,
  vmaStatus,
} from './mapping-flags.js';
import { encodeMappedMemfd, finishMemfds, mappedMemfd } from './memfd.js';
import { compileFills, followsFill, pageRuns, protectMembers } from './memory-fills.js';
import { kArchMapVdso64, kSetMmMap, prctl } from './prctl.js';
import { encodePathFile, openPathFile } from './regular-file.js';
import { mappedDeleted } from './deleted-file.js';
import { heldNumber } from './file-common.js';
import { SharedMemoryPlan, segmentMapping } from './shared-memory.js';
import { sharedObjectOf } from './shared-objects.js';
import { findStretches } from './stretches.js';
import { finishSegments, ownsSegments } from './sysv-segments.js';

export const memoryRoom: Room = { kind: 'memory', encode, compile };

const kReadOnly = 0;
const kReadWrite = 2;
const kPathModeMask = 0o170000;
const kModeRegular = 0o100000;
const kModeCharacter = 0o020000;
/** /dev/zero: private mappings of it are anonymous memory */
const kZeroDevice = (1n << 20n) | 5n;

/**
 * The format has no more room, and CRIU refuses more. The kernel puts the
 * AT_NULL that may be cut off back by itself; the program's own copy is on its stack.
 */
const kAuxvWords = 44;

// ---- raw capture to images

function encode(ctx: EncodeContext): void {
  const known: KnownFlags = { flagSets: new Map(), traits: new Map() };
  for (const task of ctx.tasks) {
    if (task.raw.zombie) continue;
    const vmas = encodeMappings(ctx, task, known);
    const exe = task.raw.exe;
    const exeId =
      exe === undefined ? undefined : encodePathFile(ctx, exe, kReadOnly, ctx.subjectOfTask(task), 'executable');
    if (exe === undefined)
      ctx.object('CAPTURE_TASK_UNSUPPORTED', `${name(task)} has no executable`, ctx.subjectOfTask(task));
    const { stat } = task;
    const mm: mm_entry = {
      mm_start_code: stat.big(26),
      mm_end_code: stat.big(27),
      mm_start_data: stat.big(45),
      mm_end_data: stat.big(46),
      mm_start_stack: stat.big(28),
      mm_start_brk: stat.big(47),
      mm_brk: task.raw.brk,
      mm_arg_start: stat.big(48),
      mm_arg_end: stat.big(49),
      mm_env_start: stat.big(50),
      mm_env_end: stat.big(51),
      exe_file_id: exeId ?? 0,
      mm_saved_auxv: new Struct(task.raw.auxv).u64s(0, Math.min(kAuxvWords, task.raw.auxv.length >> 3)),
      vmas,
      dumpable: task.raw.dumpable,
      aios: [],
      thp_disabled: task.raw.thpDisabled !== 0,
    };
    ctx.draft(task).mm = mm;
    ctx.images.add('mm', task.nsPid, mm);
  }
}

function encodeMappings(ctx: EncodeContext, task: CapturedTask, { flagSets, traits }: KnownFlags): vma_entry[] {
  const files = new Map(task.raw.mappedFiles.map((file) => [file.start, file]));
  const vmas: vma_entry[] = [];
  for (const mapping of parseSmaps(task.raw.smaps, flagSets)) {
    let known = traits.get(mapping.flags);
    if (known === undefined) traits.set(mapping.flags, (known = traitsOf(mapping.flags)));
    const vma = encodeMapping(ctx, task, mapping, known, files.get(mapping.start));
    if (vma !== undefined) vmas.push(vma);
  }
  return vmas;
}

/** Of all tasks together. */
interface KnownFlags {
  readonly flagSets: Map<string, ReadonlySet<string>>;
  readonly traits: Map<ReadonlySet<string>, Traits>;
}

/** What the flags of a mapping come to in its entry. Few sets of flags are in use, whatever the number of mappings. */
interface Traits {
  readonly mapFlags: number;
  readonly madv: bigint;
  readonly sealed: boolean;
}

function traitsOf(flags: ReadonlySet<string>): Traits {
  let mapFlags = flags.has('dp') ? mapFlag.DROPPABLE : mapFlag.PRIVATE;
  if (flags.has('gd')) mapFlags |= mapFlag.GROWSDOWN;
  if (flags.has('lo')) mapFlags |= mapFlag.LOCKED;
  if (flags.has('nr')) mapFlags |= mapFlag.NORESERVE;
  const madv = [...adviceOfFlag].reduce(
    (bits, [flag, advice]) => (flags.has(flag) ? bits | (1n << BigInt(advice)) : bits),
    0n,
  );
  return { mapFlags, madv, sealed: flags.has('sl') };
}

function encodeMapping(
  ctx: EncodeContext,
  task: CapturedTask,
  mapping: SmapsEntry,
  { mapFlags, madv, sealed }: Traits,
  file: MappedFile | undefined,
): vma_entry | undefined {
  const base: vma_entry = {
    start: mapping.start,
    end: mapping.end,
    pgoff: 0n,
    shmid: 0n,
    prot: protection(mapping),
    flags: mapFlag.PRIVATE | mapFlag.ANONYMOUS,
    status: vmaStatus.REGULAR | vmaStatus.ANON_PRIVATE,
    fd: -1n,
  };
  switch (mapping.name) {
    case '[vsyscall]':
      return { ...base, status: vmaStatus.VSYSCALL | vmaStatus.ANON_PRIVATE };
    case '[vvar]':
    case '[vvar_vclock]':
      return { ...base, status: base.status | vmaStatus.VVAR };
    case '[vdso]':
      return { ...base, status: base.status | vmaStatus.VDSO };
    case '[uprobes]':
      // made by the kernel when a probe is hit; there is nothing of the program's in it
      return undefined;
  }
  const refusal = refuseMapping(ctx, mapping, file);
  if (refusal !== undefined) {
    ctx.object(
      'CAPTURE_MAPPING_UNSUPPORTED',
      `${name(task)} has ${refusal.what} mapped at 0x${mapping.start.toString(16)}`,
      { ...ctx.subjectOfTask(task), address: mapping.start, path: mapping.name },
      refusal.hint,
    );
    return undefined;
  }
  if (sealed)
    ctx.degrade('MAPPING_SEAL_LOST', `the seal of the mapping at 0x${mapping.start.toString(16)} is not carried`, {
      ...ctx.subjectOfTask(task),
      address: mapping.start,
    });
  if (file === undefined || isAnonymousZero(mapping, file)) {
    base.flags = mapFlags | mapFlag.ANONYMOUS;
    if (mapping.name === '[heap]') base.status |= vmaStatus.HEAP;
    if (madv !== 0n) base.madv = madv;
    return base;
  }
  const extra = madv === 0n ? {} : { madv };
  const shared = mapping.permissions[3] === 's';
  const object = sharedObjectOf(ctx.capture, file);
  if (object !== undefined && object.kind !== 'segment') {
    const access = (shared ? mapping.flags.has('mw') : (file.linkMode & 0o200) !== 0) ? kReadWrite : kReadOnly;
    return {
      ...base,
      flags: (mapFlags & ~mapFlag.PRIVATE) | (shared ? mapFlag.SHARED : mapFlag.PRIVATE),
      pgoff: mapping.offset,
      shmid: BigInt(encodeMappedMemfd(ctx, object, access)),
      status: vmaStatus.REGULAR | (shared ? vmaStatus.FILE_SHARED : vmaStatus.FILE_PRIVATE) | vmaStatus.MEMFD,
      ...extra,
      fdflags: access,
    };
  }
  if (object !== undefined)
    return {
      ...base,
      flags: (mapFlags & ~mapFlag.PRIVATE) | mapFlag.SHARED | mapFlag.ANONYMOUS,
      ...segmentMapping(object, mapping),
      ...extra,
    };
  const writable = (file.linkMode & 0o200) !== 0;
  const id = encodePathFile(
    ctx,
    file,
    shared && writable ? kReadWrite : kReadOnly,
    { ...ctx.subjectOfTask(task), address: mapping.start },
    'mapped file',
  );
  if (id === undefined) return undefined;
  return {
    ...base,
    flags: (mapFlags & ~mapFlag.PRIVATE) | (shared ? mapFlag.SHARED : mapFlag.PRIVATE),
    pgoff: mapping.offset,
    shmid: BigInt(id),
    status: vmaStatus.REGULAR | (shared ? vmaStatus.FILE_SHARED : vmaStatus.FILE_PRIVATE),
    ...extra,
    fdflags: shared && writable ? kReadWrite : kReadOnly,
  };
}

function protection({ permissions }: SmapsEntry): number {
  return (
    (permissions[0] === 'r' ? prot.READ : 0) |
    (permissions[1] === 'w' ? prot.WRITE : 0) |
    (permissions[2] === 'x' ? prot.EXEC : 0)
  );
}

function isAnonymousZero(mapping: SmapsEntry, file: MappedFile): boolean {
  return (
    file.stat !== undefined &&
    (file.stat.mode & kPathModeMask) === kModeCharacter &&
    file.stat.rdev === kZeroDevice &&
    mapping.permissions[3] === 'p'
  );
}

/** What is mapped that cannot be carried, in words; undefined if it can. */
function refuseMapping(
  ctx: EncodeContext,
  mapping: SmapsEntry,
  file: MappedFile | undefined,
): { readonly what: string; readonly hint?: string } | undefined {
  const { flags } = mapping;
  const label = mapping.name;
  const shared = mapping.permissions[3] === 's';
  if (label === '/[aio]' || label.startsWith('/[aio]'))
    return { what: 'an asynchronous I/O ring', hint: 'let the program use its I/O without io_setup(2)' };
  if (label.includes('[io_uring]')) return { what: 'an io_uring ring', hint: 'let the program close its rings first' };
  if (label.startsWith('anon_inode:')) return { what: `a kernel object ("${label}")` };
  if (label.startsWith('/SYSV') && !ownsSegments(ctx))
    return { what: "a System V shared memory segment of an IPC namespace that is not the container's own" };
  if (flags.has('ht')) return { what: 'huge pages (hugetlb)', hint: 'use transparent huge pages' };
  // Not 'uw': write protection is our own way to see what changes between checkpoints, and a
  // program's own userfaultfd is refused as the open file that it is.
  if (flags.has('um') || flags.has('ui'))
    return {
      what: 'memory that a userfaultfd serves',
      hint: 'if a lazy restore is still filling it, wait until that has ended',
    };
  if (flags.has('ss')) return { what: 'a shadow stack', hint: 'run the program without user shadow stacks' };
  if (mapping.protectionKey !== 0) return { what: `memory with protection key ${mapping.protectionKey}` };
  if (flags.has('io') || flags.has('pf')) return { what: `device memory ("${label}")` };
  if (file === undefined)
    return shared || mapping.inode !== 0n
      ? { what: shared ? 'shared anonymous memory' : `a file that could not be looked at ("${label}")` }
      : undefined;
  if (isAnonymousZero(mapping, file)) return undefined;
  const object = sharedObjectOf(ctx.capture, file);
  if (object?.kind === 'anonymous' && !shared) return { what: 'a private mapping of shared anonymous memory' };
  if (object !== undefined) return undefined;
  const kind = (file.stat?.mode ?? 0) & kPathModeMask;
  if (kind === kModeCharacter) return { what: `a device ("${label}")` };
  if (kind !== kModeRegular) return { what: `something that is not a regular file ("${label}")` };
  return undefined;
}

// ---- images to plan

function fileKey(id: number, flags: number): string {
  return `${id}:${flags}`;
}

function openFlagsOf(vma: vma_entry): number {
  return (vma.fdflags ?? 0) & 3;
}

const isFileMapping = (vma: vma_entry): boolean =>
  (vma.status & (vmaStatus.FILE_PRIVATE | vmaStatus.FILE_SHARED)) !== 0 && (vma.status & vmaStatus.REGULAR) !== 0;

const isMemfd = (vma: vma_entry): boolean => (vma.status & vmaStatus.MEMFD) !== 0;

/** The files of all mappings and the executable, once per way of opening. */
function openFiles(ctx: CompileContext, { image, builder }: PlannedTask, mm: mm_entry): ReadonlyMap<string, SlotRef> {
  const slots = new Map<string, SlotRef>();
  const open = (fileId: number, flags: number, from: string): void => {
    const key = fileKey(fileId, flags);
    if (slots.has(key)) return;
    slots.set(key, mappedDeleted(ctx, fileId, flags) ?? openPathFile(ctx, builder, Phase.MEMORY, fileId, flags, from));
  };
  open(mm.exe_file_id, kReadOnly, `mm[${image.pid}].exe`);
  for (const vma of mm.vmas)
    if (isFileMapping(vma) && isOurs(vma) && !isMemfd(vma))
      open(Number(vma.shmid), openFlagsOf(vma), vmaName(`mm[${image.pid}]`, vma));
  return slots;
}

function compile(ctx: CompileContext): void {
  const live = [...ctx.tasks.values()].filter((task) => !task.image.zombie);
  const holeBytes = ctx.plan.hole.lengthBytes;
  const shared = new SharedMemoryPlan(ctx, live);
  ctx.plan.hole = chooseHole(
    live.flatMap((task) => task.image.mm?.vmas ?? []),
    holeBytes + shared.lengthBytes,
  );
  if (ctx.plan.hole.lengthBytes === 0n) {
    ctx.object(
      'IMAGE_FEATURE_UNSUPPORTED',
      'the mappings leave no room in the address space for the restore itself',
      {},
    );
    return;
  }
  ctx.plan.hole.lengthBytes = holeBytes;
  shared.place(ctx.plan.hole.address + holeBytes);
  for (const task of live) {
    const { mm } = task.image;
    if (mm === undefined) continue;
    if (!checkMappings(ctx, task.image, mm)) continue;
    compileTask(ctx, task, mm, shared);
  }
  finishMemfds(ctx);
  finishSegments(ctx);
}

/** Objects to what cannot be mapped; false if the rest makes no sense either. */
function checkMappings(ctx: CompileContext, task: ImageTask, mm: mm_entry): boolean {
  let end = 0n;
  const subject = { nsPid: task.pid, image: `mm-${task.pid}.img` };
  for (const vma of mm.vmas) {
    if ((vma.status & (vmaStatus.VSYSCALL | vmaStatus.GUARD)) !== 0) continue;
    const at = `0x${vma.start.toString(16)}`;
    if (vma.start % kPageBytes !== 0n || vma.end % kPageBytes !== 0n || vma.start >= vma.end || vma.start < end) {
      ctx.object(
        'IMAGE_CORRUPT',
        `the mapping at ${at} of pid ${task.pid} is empty, unaligned or out of order`,
        subject,
      );
      return false;
    }
    if (vma.end > kTaskEnd || vma.start < ctx.options.kernel.mmapMinAddress) {
      ctx.object(
        'KERNEL_FEATURE_MISSING',
        `the mapping at ${at} of pid ${task.pid} lies outside of what this kernel lets a program map (from 0x${ctx.options.kernel.mmapMinAddress.toString(16)})`,
        subject,
      );
      return false;
    }
    end = vma.end;
    const what = unsupportedMapping(vma);
    if (what !== undefined) {
      ctx.object('IMAGE_FEATURE_UNSUPPORTED', `pid ${task.pid} has ${what} mapped at ${at}`, {
        ...subject,
        address: vma.start,
      });
    }
  }
  return true;
}

function compileTask(ctx: CompileContext, planned: PlannedTask, mm: mm_entry, shared: SharedMemoryPlan): void {
  const { image, builder } = planned;
  const from = `mm[${image.pid}]`;
  const slots = openFiles(ctx, planned, mm);
  const { hole } = ctx.plan;
  builder.step(Phase.MEMORY, 'munmap', [0n, hole.address], { from, note: 'everything below the hole' });
  builder.step(Phase.MEMORY, 'munmap', [shared.end, kTaskEnd - shared.end], { from, note: 'everything above it' });

  // before the other mappings: the kernel takes the address as a hint, so the range must be free
  compileVdso(ctx, image, builder, mm);
  const own = mm.vmas.filter(isOurs);
  const stretches = findStretches(own);
  let stretched = 0n;
  for (const vma of own) {
    if (vma.start < stretched) continue;
    const stretch = stretches.get(vma);
    if (stretch === undefined) compileMapping(ctx, builder, vma, slots, shared, from);
    else {
      compileMapping(ctx, builder, { ...vma, end: stretch.end, prot: stretch.prot }, slots, shared, from);
      if (!followsFill(ctx)) protectMembers(builder, Phase.MEMORY, stretch, stretch.prot, from);
      stretched = stretch.end;
    }
  }
  shared.leave(builder, from);
  compileFills(ctx, planned, mm, stretches);
  compileFields(ctx, builder, mm, slots, from);
  // Those of deleted files are all tasks', and are closed together.
  for (const slot of slots.values())
    if (heldNumber(slot) === undefined) builder.step(Phase.MEMORY, 'close', [slot], { from });

  for (const vma of mm.vmas) compileAfterFill(builder, vma, from);
  if (mm.thp_disabled === true)
    builder.step(Phase.THREADS, 'prctl', [prctl.SET_THP_DISABLE, 1, 0, 0, 0], { from: `${from}.thp_disabled` });
}

const vmaName = (from: string, vma: vma_entry): string => `${from}.vma[${vma.start.toString(16)}]`;

function compileMapping(
  ctx: CompileContext,
  builder: TaskBuilder,
  vma: vma_entry,
  slots: ReadonlyMap<string, SlotRef>,
  shared: SharedMemoryPlan,
  from: string,
): void {
  let file = isFileMapping(vma) ? slots.get(fileKey(Number(vma.shmid), openFlagsOf(vma))) : undefined;
  if (isMemfd(vma)) file = mappedMemfd(ctx, vma);
  let flags = vma.flags & ~mapFlag.LOCKED; // locked after the fill, or every page would be there already
  if ((flags & mapFlag.DROPPABLE) !== 0) flags &= ~mapFlag.PRIVATE;
  if (isFileMapping(vma)) flags &= ~mapFlag.ANONYMOUS;
  else flags |= mapFlag.ANONYMOUS;
  const length = vma.end - vma.start;
  if (shared.holds(vma)) shared.map(builder, vma, vmaName(from, vma));
  else
    builder.step(
      Phase.MEMORY,
      'mmap',
      [vma.start, length, vma.prot, flags | mapFlag.FIXED_NOREPLACE, file ?? -1, file === undefined ? 0n : vma.pgoff],
      { from: vmaName(from, vma), expected: vma.start },
    );
  if ((flags & mapFlag.DROPPABLE) !== 0) return; // implies its advice
  for (let advice = 0; advice < 64; advice += 1) {
    if (((vma.madv ?? 0n) & (1n << BigInt(advice))) === 0n) continue;
    builder.step(Phase.MEMORY, 'madvise', [vma.start, length, advice], {
      from: vmaName(from, vma),
      // a kernel built without KSM or transparent huge pages has nothing to advise
      tolerate: advice === 12 || advice === 14 || advice === 15 ? [kEinval] : [],
    });
  }
}

const kEinval = 22;

function compileAfterFill(builder: TaskBuilder, vma: vma_entry, from: string): void {
  const length = vma.end - vma.start;
  if (isOurs(vma) && (vma.flags & mapFlag.LOCKED) !== 0)
    builder.step(Phase.THREADS, 'mlock2', [vma.start, length, 0], { from: vmaName(from, vma) });
  if ((vma.status & vmaStatus.GUARD) !== 0)
    builder.step(Phase.THREADS, 'madvise', [vma.start, length, kMadviseGuardInstall], { from: vmaName(from, vma) });
}

/**
 * The kernel's own vdso goes where the program knows it to be. The program has
 * addresses of functions in it, so it must be the same one.
 */
function compileVdso(ctx: CompileContext, task: ImageTask, builder: TaskBuilder, mm: mm_entry): void {
  const parts = mm.vmas.filter((vma) => (vma.status & (vmaStatus.VDSO | vmaStatus.VVAR)) !== 0);
  const vdso = parts.find((vma) => (vma.status & vmaStatus.VDSO) !== 0);
  const first = parts[0];
  const last = parts.at(-1);
  if (vdso === undefined || first === undefined || last === undefined) return; // the program has unmapped it
  const { kernel } = ctx.options;
  const subject = { nsPid: task.pid, address: vdso.start };
  const span = last.end - first.start;
  const offset = vdso.start - first.start;
  const hint = 'restore under the kernel that the checkpoint was made on';
  if (span !== kernel.vdsoSpanBytes || offset !== kernel.vdsoOffsetBytes) {
    ctx.object(
      'KERNEL_FEATURE_MISSING',
      `the images come from a kernel with another vdso (${span} bytes with the code at ${offset}, here ${kernel.vdsoSpanBytes} with the code at ${kernel.vdsoOffsetBytes})`,
      subject,
      hint,
    );
    return;
  }
  const digest = kernel.vdsoDigest === '' ? undefined : digestOfPages(ctx, task, vdso.start, vdso.end);
  if (digest !== undefined && digest !== kernel.vdsoDigest) {
    ctx.object(
      'KERNEL_FEATURE_MISSING',
      'the images come from a kernel with another vdso (same size, other code)',
      subject,
      hint,
    );
    return;
  }
  const from = vmaName(`mm[${task.pid}]`, vdso);
  // arch_prctl returns the size of the code, not the address; mincore tells whether the hint was taken
  builder.step(Phase.MEMORY, 'arch_prctl', [kArchMapVdso64, first.start], {
    from,
    expected: vdso.end - vdso.start,
  });
  const room = ctx.plan.blob(new Uint8Array(0), [], Number(span / kPageBytes));
  builder.step(Phase.MEMORY, 'mincore', [first.start, span, room], { from, note: 'is it there?' });
}

/** sha256 of [start, end) as the images have it; undefined if they do not have all of it at hand. */
function digestOfPages(ctx: CompileContext, task: ImageTask, start: bigint, end: bigint): string | undefined {
  const head = ctx.images.set.entries('pagemap', task.pid)[0];
  if (head === undefined) return undefined;
  const pages = pageRuns(ctx, task);
  const run = pages?.runs.find((candidate) => candidate.start <= start && candidate.end >= end);
  if (pages === undefined || run === undefined) return undefined;
  const bytes = readPages(ctx.images.set, run.file, Number(run.offset + start - run.start), Number(end - start));
  return bytes === undefined ? undefined : createHash('sha256').update(bytes).digest('hex');
}

/** struct prctl_mm_map: eleven addresses, auxv pointer, auxv size, exe descriptor. */
function compileFields(
  ctx: CompileContext,
  builder: TaskBuilder,
  mm: mm_entry,
  slots: ReadonlyMap<string, SlotRef>,
  from: string,
): void {
  const auxv = new Struct(8 * mm.mm_saved_auxv.length).setU64s(0, mm.mm_saved_auxv);
  const map = new Struct(kMmMapBytes)
    .setU64s(0, [
      mm.mm_start_code,
      mm.mm_end_code,
      mm.mm_start_data,
      mm.mm_end_data,
      mm.mm_start_brk,
      mm.mm_brk,
      mm.mm_start_stack,
      mm.mm_arg_start,
      mm.mm_arg_end,
      mm.mm_env_start,
      mm.mm_env_end,
    ])
    .setU32(96, auxv.length);
  const exe = slots.get(fileKey(mm.exe_file_id, kReadOnly));
  if (exe === undefined) map.setU32(100, 0xffffffff);
  const blob = ctx.plan.blob(map.bytes, [
    ...(auxv.length === 0 ? [] : [{ offset: 88, blob: ctx.plan.blob(auxv.bytes) }]),
    ...(exe === undefined ? [] : [{ offset: 100, slot32: exe }]),
  ]);
  // after the old mappings are gone: the kernel refuses a new exe while the old one is mapped
  builder.step(Phase.MEMORY, 'prctl', [prctl.SET_MM, kSetMmMap, blob, kMmMapBytes, 0], {
    from,
    note: 'brk, code, data, stack, arguments, auxv, exe',
  });
}

const kMmMapBytes = 104;
