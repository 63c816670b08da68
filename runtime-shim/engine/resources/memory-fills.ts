// Where page data goes at a restore, and by which way: what is registered with a
// userfaultfd and filled from outside, now or lazily, and what is written to.
import type { mm_entry, vma_entry } from '../../../oci-spec/images/messages.js';
import type { CompileContext, ImageTask, PlannedTask } from '../compile-context.js';
import { Phase, type PhaseValue, type SlotRef, type TaskBuilder } from '../plan/builder.js';
import { keepInherited } from './file-common.js';
import { isOurs, kPageBytes, mapFlag, vmaStatus } from './mapping-flags.js';
import { readPageMap, type PageMap } from './page-map.js';
import { piecesOf, type Piece, type Stretch } from './stretches.js';

const kCloseOnExec = 0o2000000;
const kEbadf = 9;
/** Of /dev/userfaultfd, Linux 6.1: whoever may open it may make one, whatever the privileges of the task that does. */
const kUserfaultfdIocNew = 0xaa00;
const kMethodUffd = 0;
const kMethodMem = 1;
/** UFFD_USER_MODE_ONLY: the coordinator fills before anything touches; needs no privilege */
const kUserModeOnly = 1;
const kNonBlocking = 0o4000;
const kMadviseHugePage = 14n;
const kMadviseNoHugePage = 15n;
const kMadviseWipeOnFork = 18n;
const kHugePageBytes = 0x200000n;

/**
 * Locked memory is there when mlock2(2) returns, and what a fork wipes is missing
 * in a child for good: a page process could not tell it from what it has not brought yet.
 */
const isLazy = (ctx: CompileContext, vma: vma_entry): boolean =>
  ctx.options.lazyPages === true &&
  (vma.flags & mapFlag.LOCKED) === 0 &&
  ((vma.madv ?? 0n) & (1n << kMadviseWipeOnFork)) === 0n;

/**
 * A userfaultfd takes small pages only. Written to, such memory gets huge ones where the kernel gave it some before,
 * with one fault instead of 512.
 */
function getsHugePages(ctx: CompileContext, mm: mm_entry, vma: vma_entry): boolean {
  const { hugePages } = ctx.options.kernel;
  const advised = (advice: bigint): boolean => ((vma.madv ?? 0n) & (1n << advice)) !== 0n;
  if (hugePages === undefined || mm.thp_disabled === true || advised(kMadviseNoHugePage)) return false;
  const first = ((vma.start + kHugePageBytes - 1n) / kHugePageBytes) * kHugePageBytes;
  return (hugePages === 'all' || advised(kMadviseHugePage)) && first + kHugePageBytes <= vma.end;
}

/** What one fill may reach. */
interface Target {
  readonly start: bigint;
  readonly end: bigint;
  /** The first of a stretch, or of a piece of one. */
  readonly vma: vma_entry;
  /** A userfaultfd takes one mapping at a time; where all are small, writing to many of them at once costs less. */
  readonly isStretch: boolean;
  /** Registered by itself, so that it can be told apart as soon as it is filled. */
  readonly piece?: Piece;
}

/**
 * Whether stretches are filled before they are told apart, in phase FILL: each piece while the next one is filled. If
 * not they are told apart before they are written to: without pages the kernel divides a mapping quicker.
 */
export const followsFill = (ctx: CompileContext): boolean =>
  ctx.options.kernel.userfaultfd && ctx.options.lazyPages !== true;

function targetsOf(mm: mm_entry, stretches: ReadonlyMap<vma_entry, Stretch>, inPieces: boolean): Target[] {
  const targets: Target[] = [];
  let stretched = 0n;
  for (const vma of mm.vmas) {
    if ((vma.status & (vmaStatus.VSYSCALL | vmaStatus.GUARD)) !== 0 || vma.start < stretched) continue;
    const stretch = stretches.get(vma);
    if (stretch !== undefined) stretched = stretch.end;
    if (stretch !== undefined && inPieces) {
      for (const piece of piecesOf(stretch))
        targets.push({ start: piece.start, end: piece.end, vma: piece.vmas[0] ?? vma, isStretch: true, piece });
      continue;
    }
    targets.push({ start: vma.start, end: stretch?.end ?? vma.end, vma, isStretch: stretch !== undefined });
  }
  return targets;
}

const isAnonymous = (vma: vma_entry): boolean =>
  isOurs(vma) && (vma.status & vmaStatus.ANON_PRIVATE) !== 0 && (vma.flags & mapFlag.DROPPABLE) === 0;

/**
 * The ranges to register. One registration takes all mappings in it, whatever
 * lies between them, and costs more than each of them: so one for neighbours,
 * up to what must not be registered.
 */
class RangeList {
  readonly #ctx: CompileContext;
  readonly #targets: readonly Target[];
  readonly #ranges: { address: bigint; lengthBytes: bigint }[];
  readonly #takesUffd: (target: Target) => boolean;
  /** Of the hole and what shared memory needs behind it: no mapping of the program lies there, but ours do. */
  readonly #holeStart: bigint;
  #last: number | undefined;

  constructor(
    ctx: CompileContext,
    targets: readonly Target[],
    ranges: { address: bigint; lengthBytes: bigint }[],
    takesUffd: (target: Target) => boolean,
  ) {
    this.#ctx = ctx;
    this.#takesUffd = takesUffd;
    this.#targets = targets;
    this.#ranges = ranges;
    this.#holeStart = ctx.plan.hole.address;
  }

  /** In order. */
  add(number: number): void {
    if (this.#last === number) return;
    const target = this.#targets[number];
    const range = this.#ranges.at(-1);
    if (target === undefined) return;
    if (range !== undefined && this.#last !== undefined && this.#mayJoin(this.#last, number))
      range.lengthBytes = target.end - range.address;
    else this.#ranges.push({ address: target.start, lengthBytes: target.end - target.start });
    this.#last = number;
  }

  #mayJoin(last: number, next: number): boolean {
    if (this.#targets[last]?.piece !== undefined || this.#targets[next]?.piece !== undefined) return false;
    if ((this.#targets[last]?.end ?? 0n) <= this.#holeStart && this.#holeStart < (this.#targets[next]?.start ?? 0n))
      return false;
    // What is registered but not filled would be missing to the program that a lazy restore has released.
    if (this.#ctx.options.lazyPages === true) return next === last + 1;
    for (let between = last + 1; between < next; between += 1)
      if (!this.#takesUffd(this.#targets[between] as Target)) return false;
    return true;
  }
}

/** In the root task, while files are opened; every task makes its userfaultfd through it in phase MEMORY. */
export function holdUserfaultfdDevice(ctx: CompileContext): void {
  const { lazyPages, userfaultfdDevice } = ctx.options;
  if (lazyPages !== true || userfaultfdDevice === undefined) return;
  const external = ctx.plan.external(kUserfaultfdDevice, userfaultfdDevice);
  devices.set(ctx, keepInherited(ctx, external, 'lazy pages'));
}
export const kUserfaultfdDevice = '/dev/userfaultfd';
const devices = new WeakMap<CompileContext, SlotRef>();

export function compileFills(
  ctx: CompileContext,
  planned: PlannedTask,
  mm: mm_entry,
  stretches: ReadonlyMap<vma_entry, Stretch>,
): void {
  const { image, builder } = planned;
  const pages = pageRuns(ctx, image);
  if (pages === undefined) return;
  const from = `pagemap[${image.pid}]`;
  // Lazily memory is filled through a userfaultfd whatever it costs.
  const targets = targetsOf(mm, ctx.options.lazyPages === true ? new Map() : stretches, followsFill(ctx));
  const registered = (vma: vma_entry): boolean =>
    ctx.options.lazyPages === true ? isLazy(ctx, vma) : ctx.options.kernel.userfaultfd && !getsHugePages(ctx, mm, vma);
  const takesUffd = ({ vma, isStretch, piece }: Target): boolean =>
    piece !== undefined || (!isStretch && isAnonymous(vma) && registered(vma));
  const filledWith = new Map<Piece, number>();
  const ranges = new RangeList(ctx, targets, builder.uffdRanges, takesUffd);
  let at = 0;
  for (const run of pages.runs) {
    let start = run.start;
    while (start < run.end) {
      while (at < targets.length && (targets[at] as Target).end <= start) at += 1;
      const target = targets[at];
      if (target === undefined || target.start > start) {
        ctx.object('IMAGE_CORRUPT', `there are pages at 0x${start.toString(16)} of pid ${image.pid}, but no mapping`, {
          image: `pagemap-${image.pid}.img`,
        });
        return;
      }
      const { vma } = target;
      const end = target.end < run.end ? target.end : run.end;
      if (
        isOurs(vma) &&
        (vma.status & (vmaStatus.FILE_SHARED | vmaStatus.ANON_SHARED)) === 0 &&
        (vma.flags & mapFlag.DROPPABLE) === 0
      ) {
        const method = takesUffd(target) ? kMethodUffd : kMethodMem;
        builder.fills.push({
          method,
          address: start,
          pageCount: (end - start) / kPageBytes,
          pageFile: ctx.plan.pageFile(run.file),
          fileOffsetBytes: run.offset + (start - run.start),
        });
        if (method === kMethodUffd) ranges.add(at);
        if (target.piece !== undefined) filledWith.set(target.piece, builder.uffdRanges.length);
      }
      start = end;
    }
  }
  if (followsFill(ctx)) tellApart(builder, targets, stretches, filledWith, from);
  if (builder.uffdRanges.length === 0) return;
  const slot = ctx.plan.slot(`uffd ${image.pid}`);
  builder.uffdSlot = slot;
  // Lazy: a system call of the running program may be what meets a missing page, and the page process polls.
  const mode = ctx.options.lazyPages === true ? kNonBlocking : kUserModeOnly;
  const device = devices.get(ctx);
  if (device === undefined) builder.step(Phase.MEMORY, 'userfaultfd', [kCloseOnExec | mode], { from, out: slot });
  else
    builder.step(Phase.MEMORY, 'ioctl', [device, kUserfaultfdIocNew, kCloseOnExec | mode], {
      from,
      out: slot,
      note: 'USERFAULTFD_IOC_NEW',
    });
  // A task whose own descriptors fill all lower numbers got it above them: there the held ones have been closed together.
  builder.step(Phase.THREADS, 'close', [slot], { from, tolerate: [kEbadf] });
}

/** `filledWith`: how many of the ranges, from the first on, must be filled before a piece is; none where it is empty. */
function tellApart(
  builder: TaskBuilder,
  targets: readonly Target[],
  stretches: ReadonlyMap<vma_entry, Stretch>,
  filledWith: ReadonlyMap<Piece, number>,
  from: string,
): void {
  let base = 0;
  for (const { piece } of targets) {
    if (piece === undefined) continue;
    const [first] = piece.vmas;
    base = (first === undefined ? undefined : stretches.get(first)?.prot) ?? base;
    const ranges = filledWith.get(piece);
    if (ranges !== undefined)
      builder.step(Phase.FILL, 'await_fill', [ranges], { from: `${from}.vma[${rangeName(piece)}]` });
    protectMembers(builder, Phase.FILL, piece, base, from);
  }
}

/** From what all of them are mapped with. */
export function protectMembers(
  builder: TaskBuilder,
  phase: PhaseValue,
  members: Piece,
  mappedWith: number,
  from: string,
): void {
  const numbers: bigint[] = [];
  for (const vma of members.vmas)
    if (vma.prot !== mappedWith) numbers.push(vma.start, vma.end - vma.start, BigInt(vma.prot));
  builder.steps(phase, 'mprotect', 3, numbers, { from: `${from}.vma[${rangeName(members)}]` });
}

const rangeName = ({ start, end }: Piece): string => `${start.toString(16)}-${end.toString(16)}`;

/** Where the data of each run is; undefined after objecting. */
export function pageRuns(ctx: CompileContext, task: ImageTask): PageMap | undefined {
  const map = readPageMap(ctx, 'pagemap', task.pid);
  if (map !== 'absent') return map;
  const image = `pagemap-${task.pid}.img`;
  ctx.object('IMAGE_MISSING', `"${image}" is missing`, { image }, 'use a complete copy of the checkpoint');
  return undefined;
}
