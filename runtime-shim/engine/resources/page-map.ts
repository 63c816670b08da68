// pagemap images, of private and of shared memory alike: which pages there are,
// and where in their page file.
import type {
  PageRun as CapturedRun,
  ParentObject,
  ParentRun,
  ParentTask,
} from '../../../nativecore/schema/messages.js';
import type { pagemap_entry } from '../../../oci-spec/images/messages.js';
import type { CompileContext } from '../compile-context.js';
import type { ImageSetReader, ImageSetWriter } from '../image-set.js';
import { pageFileBytes, pageFileName } from '../page-frames.js';
import { kPageBytes, kTaskEnd, pageFlag } from './mapping-flags.js';

type PageMapKind = 'pagemap' | 'pagemap-shmem';

// ---- raw capture to images

export function addPageMap(
  images: ImageSetWriter,
  map: {
    readonly kind: PageMapKind;
    readonly id: number | bigint;
    readonly pagesId: number;
    readonly runs: readonly CapturedRun[];
    /** Not in the page file: as in the parent images. */
    readonly parentRuns?: readonly CapturedRun[];
  },
): void {
  images.addAs(map.kind, map.id, 'pagemap_head', { pages_id: map.pagesId });
  const own = map.runs.map((run) => ({ run, inParent: false }));
  const parents = (map.parentRuns ?? []).map((run) => ({ run, inParent: true }));
  const entries =
    parents.length === 0
      ? own
      : [...own, ...parents].sort((one, other) => (one.run.address < other.run.address ? -1 : 1));
  for (const { run, inParent } of entries) {
    images.add(map.kind, map.id, {
      vaddr: run.address,
      // CRIU 4.2 reads nr_pages; older readers, and checkpointctl among them, know this field only.
      compat_nr_pages: Number(run.pageCount <= 0xffffffffn ? run.pageCount : 0n),
      flags: inParent ? pageFlag.PARENT : pageFlag.PRESENT,
      nr_pages: run.pageCount,
      ...(inParent ? { in_parent: true } : {}),
    });
  }
}

/** Both ascending: what of `runs` lies inside `known`. */
export function intersectRuns(runs: readonly CapturedRun[], known: readonly CapturedRun[]): CapturedRun[] {
  const common: CapturedRun[] = [];
  let next = 0;
  for (const run of runs) {
    const end = endOf(run);
    while (next < known.length && endOf(known[next]!) <= run.address) next += 1;
    for (let at = next; at < known.length && known[at]!.address < end; at += 1) {
      const other = known[at]!;
      const from = other.address > run.address ? other.address : run.address;
      const to = endOf(other) < end ? endOf(other) : end;
      if (from < to) common.push({ address: from, pageCount: (to - from) / kPageBytes });
    }
  }
  return common;
}

const endOf = ({ address, pageCount }: CapturedRun): bigint => address + pageCount * kPageBytes;

/** Which pages of a process a set of images knows, in its own page file or by its parents. */
export function knownPages(set: ImageSetReader, pid: number): CapturedRun[] {
  const [, ...entries] = set.entries('pagemap', pid);
  const runs: CapturedRun[] = [];
  for (const { message } of entries) {
    const run = { address: message.vaddr, pageCount: pageCountOf(message) };
    const last = runs.at(-1);
    if (last !== undefined && endOf(last) === run.address) last.pageCount += run.pageCount;
    else runs.push(run);
  }
  return runs;
}

export interface ParentPages {
  /** Page files, relative to the parent's directory. */
  readonly files: readonly string[];
  readonly tasks: readonly ParentTask[];
  readonly objects: readonly ParentObject[];
  /** Why there is nothing to compare with, though there may be pages. */
  readonly obstacle?: string;
}

/** As the core has it (encode_capture.cc); more would cost more than writing all. */
const kMaximalParentRuns = 1 << 20;

/** Where the pages of all tasks and of shared memory lie that a set of images knows, in its own page files or by its parents. */
export function parentPages(set: ImageSetReader): ParentPages {
  const files = new Map<string, number>();
  const tasks: ParentTask[] = [];
  const objects: ParentObject[] = [];
  const none = (obstacle: string): ParentPages => ({ files: [], tasks: [], objects: [], obstacle });
  let count = 0;
  for (const name of set.list()) {
    const [, kind, id] = /^(pagemap|pagemap-shmem)-(0|[1-9][0-9]{0,9})\.img$/.exec(name) ?? [];
    if (id === undefined) continue;
    const obstacles: string[] = [];
    const ctx: PageMapContext = { images: { set }, object: (_code, message) => obstacles.push(message) };
    const map = readPageMap(ctx, kind as PageMapKind, Number(id));
    if (map === undefined || map === 'absent') return none(obstacles[0] ?? `"${name}" cannot be read`);
    const runs: ParentRun[] = [];
    for (const { start, end, file, offset } of map.runs) {
      const pageCount = (end - start) / kPageBytes;
      const number = files.get(file) ?? files.size;
      files.set(file, number);
      const last = runs.at(-1);
      const length = last === undefined ? 0n : last.pageCount * kPageBytes;
      if (last?.file === number && last.address + length === start && last.offsetBytes + length === offset)
        last.pageCount += pageCount;
      else runs.push({ address: start, pageCount, file: number, offsetBytes: offset });
    }
    count += runs.length;
    if (count > kMaximalParentRuns) return none(`its memory lies in more than ${kMaximalParentRuns} pieces`);
    if (runs.length === 0) continue;
    if (kind === 'pagemap') tasks.push({ nsPid: Number(id), runs });
    else objects.push({ number: BigInt(id), runs });
  }
  return { files: [...files.keys()], tasks, objects };
}

const pageCountOf = (entry: pagemap_entry): bigint => entry.nr_pages ?? BigInt(entry.compat_nr_pages);
const flagsOf = (entry: pagemap_entry): number =>
  entry.flags ?? (entry.in_parent === true ? pageFlag.PARENT : pageFlag.PRESENT);

/** How much memory of a process a set of images has, and how much of it is in its parents. */
export function savedPages(set: ImageSetReader, pid: number): { readonly bytes: bigint; readonly ofParents: bigint } {
  let [bytes, ofParents] = [0n, 0n];
  for (const { message } of set.entries('pagemap', pid).slice(1)) {
    const length = pageCountOf(message) * kPageBytes;
    bytes += length;
    if ((flagsOf(message) & (pageFlag.PRESENT | pageFlag.PARENT)) === pageFlag.PARENT) ofParents += length;
  }
  return { bytes, ofParents };
}

// ---- images to plan

export interface PageRun {
  readonly start: bigint;
  readonly end: bigint;
  /** Page file, relative to the images: "pages-1.img", "parent/pages-1.img". */
  readonly file: string;
  /** In the page file. */
  readonly offset: bigint;
}

export interface PageMap {
  readonly runs: readonly PageRun[];
}

/** A chain of incremental checkpoints; more are no honest one's. */
const kMaximalParents = 256;

/** Of a CompileContext, what is needed here. */
interface PageMapContext extends Pick<CompileContext, 'object'> {
  readonly images: { readonly set: ImageSetReader };
}

/** "absent": there is no such image. Undefined after objecting. */
export function readPageMap(
  ctx: PageMapContext,
  kind: PageMapKind,
  id: number | bigint,
): PageMap | 'absent' | undefined {
  return new PageMapReader(ctx, kind, id).read(ctx.images.set, '', 0);
}

class PageMapReader {
  readonly #ctx: PageMapContext;
  readonly #kind: PageMapKind;
  readonly #id: number | bigint;
  readonly #image: string;

  constructor(ctx: PageMapContext, kind: PageMapKind, id: number | bigint) {
    this.#ctx = ctx;
    this.#kind = kind;
    this.#id = id;
    this.#image = `${kind}-${id}.img`;
  }

  read(set: ImageSetReader, prefix: string, depth: number): PageMap | 'absent' | undefined {
    const [head, ...entries] = set.entries(this.#kind, this.#id);
    if (head === undefined) return 'absent';
    const image = prefix + this.#image;
    const plain = pageFileName(set, (head.message as unknown as { pages_id: number }).pages_id);
    const file = prefix + plain;
    const runs: PageRun[] = [];
    const missing: { readonly start: bigint; readonly end: bigint }[] = [];
    let offset = 0n;
    let end = 0n;
    for (const { message: entry } of entries) {
      const pages = pageCountOf(entry);
      const flags = flagsOf(entry);
      const runEnd = entry.vaddr + pages * kPageBytes;
      if (entry.vaddr % kPageBytes !== 0n || entry.vaddr < end || pages === 0n || runEnd > kTaskEnd) {
        this.#ctx.object('IMAGE_CORRUPT', `"${image}" is not in order at 0x${entry.vaddr.toString(16)}`, { image });
        return undefined;
      }
      end = runEnd;
      if ((flags & pageFlag.PRESENT) !== 0) {
        runs.push({ start: entry.vaddr, end: runEnd, file, offset });
        offset += pages * kPageBytes;
      } else if ((flags & pageFlag.PARENT) !== 0) {
        missing.push({ start: entry.vaddr, end: runEnd });
      } else {
        this.#ctx.object(
          'IMAGE_FEATURE_UNSUPPORTED',
          `"${image}" leaves pages to a page server`,
          { image },
          'use a full checkpoint',
        );
        return undefined;
      }
    }
    const size = pageFileBytes(set, plain);
    if (offset > 0n && (size === undefined || BigInt(size) < offset)) {
      this.#ctx.object(
        size === undefined ? 'IMAGE_MISSING' : 'IMAGE_CORRUPT',
        size === undefined ? `"${file}" is missing` : `"${file}" is truncated (${size} bytes, wanted ${offset})`,
        { image: file },
        'use a complete copy of the checkpoint',
      );
      return undefined;
    }
    if (missing.length === 0) return { runs };
    return this.#fromParent(set, prefix, depth, runs, missing);
  }

  #fromParent(
    set: ImageSetReader,
    prefix: string,
    depth: number,
    own: readonly PageRun[],
    missing: readonly { readonly start: bigint; readonly end: bigint }[],
  ): PageMap | undefined {
    const image = prefix + this.#image;
    const parent = depth < kMaximalParents ? set.parent() : undefined;
    const map = parent === undefined ? 'absent' : this.read(parent, `${prefix}parent/`, depth + 1);
    if (map === undefined) return undefined;
    const known = map === 'absent' ? [] : map.runs;
    const found: PageRun[] = [];
    let next = 0;
    for (const { start, end } of missing) {
      let at = start;
      while (next < known.length && known[next]!.end <= at) next += 1;
      for (let index = next; at < end; index += 1) {
        const run = known[index];
        if (run === undefined || run.start > at) {
          this.#ctx.object(
            'IMAGE_MISSING',
            `"${image}" leaves the page at 0x${at.toString(16)} to its parent checkpoint, ${parent === undefined ? 'which is not there' : 'which lacks it'}`,
            { image },
            'keep the directories of an incremental checkpoint together, at their places relative to each other',
          );
          return undefined;
        }
        const to = run.end < end ? run.end : end;
        found.push({ start: at, end: to, file: run.file, offset: run.offset + (at - run.start) });
        at = to;
      }
    }
    return { runs: [...own, ...found].sort((one, other) => (one.start < other.start ? -1 : 1)) };
  }
}
