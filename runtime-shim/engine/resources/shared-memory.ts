// Memory that processes share: objects of the kernel's own tmpfs, each captured
// once. Anonymous ones are made again by the root task at an address that nobody
// uses, next to the hole; the tree inherits them through fork, and each task
// makes its mappings out of that one. memfds and System V segments, which are
// made elsewhere, are filled the same way.
import type { Capture, PageMap as CapturedPages } from '../../../nativecore/schema/messages.js';
import type { vma_entry } from '../../../oci-spec/images/messages.js';
import type { CompileContext, PlannedTask } from '../compile-context.js';
import type { ImageSetWriter } from '../image-set.js';
import type { SmapsEntry } from '../proc-text.js';
import { Phase, type SlotRef, type TaskBuilder } from '../plan/builder.js';
import { corrupt } from './file-common.js';
import { kPageBytes, kTaskEnd, mapFlag, prot, vmaStatus } from './mapping-flags.js';
import { anonymousOf, plannedMemfds } from './memfd.js';
import { addPageMap, readPageMap, type PageMap } from './page-map.js';
import { sharedObjects, type SharedObject } from './shared-objects.js';
import { attachSegment, plannedSegments, segmentBytes } from './sysv-segments.js';

// ---- raw capture to images

/** What a mapping of a segment adds to the entry of a private one; the other kinds are mapped files. */
export function segmentMapping(
  object: SharedObject,
  { offset, flags }: SmapsEntry,
): Pick<vma_entry, 'pgoff' | 'shmid' | 'status' | 'fdflags'> {
  return {
    pgoff: offset,
    shmid: object.shmid,
    status: vmaStatus.REGULAR | vmaStatus.ANON_SHARED | vmaStatus.SYSVIPC,
    // 0: attached for reading only
    fdflags: flags.has('mw') ? kReadWrite : 0,
  };
}
const kReadWrite = 2;

/** pagemap-shmem-<shmid> of every object. */
export function encodeSharedPageMaps(capture: Capture, pageMap: CapturedPages, images: ImageSetWriter): void {
  const objects = sharedObjects(capture);
  for (const { object, pagesId, runs, unchangedRuns } of pageMap.shared) {
    const shmid = objects[object]?.shmid;
    if (shmid === undefined) continue;
    addPageMap(images, { kind: 'pagemap-shmem', id: shmid, pagesId, runs, parentRuns: unchangedRuns });
  }
}

// ---- images to plan

/** An object on its way into the tree. Its scratch mapping has every task until its own mappings are made. */
interface PlannedObject {
  readonly shmid: bigint;
  readonly sizeBytes: bigint;
  /** Of mmap(2) where it is made. */
  readonly flags: number;
  readonly memfd?: SlotRef;
  readonly segment?: number;
  readonly content: PageMap;
  scratch: bigint;
}

const wholePages = (bytes: bigint): bigint => ((bytes + kPageBytes - 1n) / kPageBytes) * kPageBytes;
const kMremapMayMoveFixed = 1 | 2;

const isSegment = (vma: vma_entry): boolean => (vma.status & vmaStatus.SYSVIPC) !== 0;

/** All shared anonymous objects of the images, and where they are kept until every task has mapped them. */
export class SharedMemoryPlan {
  readonly #ctx: CompileContext;
  readonly #objects = new Map<bigint, PlannedObject>();
  readonly #segments = new Map<bigint, PlannedObject>();
  readonly #memfds: PlannedObject[] = [];
  /** Room for all of them, one after the other. */
  readonly lengthBytes: bigint;
  #start = 0n;

  constructor(ctx: CompileContext, tasks: readonly PlannedTask[]) {
    this.#ctx = ctx;
    const sizes = new Map<bigint, { end: bigint; reserve: boolean }>();
    for (const { image } of tasks)
      for (const vma of image.mm?.vmas ?? []) {
        const found = this.#anonymous(vma);
        if (found === undefined) continue;
        const mapped = vma.pgoff + (vma.end - vma.start);
        const known = sizes.get(found.shmid) ?? { end: found.sizeBytes, reserve: false };
        known.end = mapped > known.end ? mapped : known.end;
        known.reserve ||= (vma.flags & mapFlag.NORESERVE) === 0;
        sizes.set(found.shmid, known);
      }
    let total = 0n;
    for (const [shmid, { end, reserve }] of sizes) {
      const content = contentOf(ctx, shmid);
      const last = content.runs.at(-1);
      const sizeBytes = last !== undefined && last.end > end ? last.end : end;
      if (sizeBytes > kTaskEnd || sizeBytes % kPageBytes !== 0n) {
        ctx.object('IMAGE_CORRUPT', `the shared memory ${shmid} has an impossible size (${sizeBytes} bytes)`, {
          image: `pagemap-shmem-${shmid}.img`,
        });
        continue;
      }
      const flags = mapFlag.SHARED | mapFlag.ANONYMOUS | (reserve ? 0 : mapFlag.NORESERVE);
      this.#objects.set(shmid, { shmid, sizeBytes, flags, content, scratch: total });
      total += sizeBytes;
    }
    for (const segment of plannedSegments(ctx)) {
      const shmid = BigInt(segment.id);
      const content = contentOf(ctx, shmid);
      const sizeBytes = segmentBytes(segment);
      if ((content.runs.at(-1)?.end ?? 0n) > sizeBytes)
        throw corrupt(`pagemap-shmem-${shmid}.img`, `has pages beyond the end of segment ${shmid}`);
      this.#segments.set(shmid, { shmid, sizeBytes, flags: 0, segment: segment.id, content, scratch: total });
      total += sizeBytes;
    }
    for (const { entry, slot } of plannedMemfds(ctx)) {
      const content = contentOf(ctx, BigInt(entry.shmid));
      const last = content.runs.at(-1);
      if (last === undefined) continue;
      const sizeBytes = wholePages(entry.size);
      if (last.end > sizeBytes)
        throw corrupt(`pagemap-shmem-${entry.shmid}.img`, `has pages beyond the end of "${entry.name}"`);
      this.#memfds.push({
        shmid: BigInt(entry.shmid),
        sizeBytes,
        flags: mapFlag.SHARED,
        memfd: slot,
        content,
        scratch: total,
      });
      total += sizeBytes;
    }
    this.lengthBytes = total;
  }

  /** Number of the anonymous object of a mapping, and its size as far as the images tell it. */
  #anonymous(vma: vma_entry): { readonly shmid: bigint; readonly sizeBytes: bigint } | undefined {
    const entry = anonymousOf(this.#ctx, vma);
    if (entry !== undefined) return { shmid: BigInt(entry.shmid), sizeBytes: wholePages(entry.size) };
    const isOld = (vma.status & vmaStatus.ANON_SHARED) !== 0 && !isSegment(vma);
    return isOld ? { shmid: vma.shmid, sizeBytes: 0n } : undefined;
  }

  /** Is it mapped out of what the root task has made? */
  holds(vma: vma_entry): boolean {
    return isSegment(vma) || this.#anonymous(vma) !== undefined;
  }

  /** Objects are made at `start` by the root task, filled there by the coordinator, and inherited. */
  place(start: bigint): void {
    this.#start = start;
    const root = this.#ctx.root.builder;
    for (const object of [...this.#objects.values(), ...this.#segments.values(), ...this.#memfds]) {
      object.scratch += start;
      const { scratch, sizeBytes, flags, memfd, segment } = object;
      const options = { from: `shmem[${object.shmid}]`, expected: scratch, note: 'children inherit it' };
      if (segment === undefined) {
        const access = prot.READ | prot.WRITE;
        const how = flags | mapFlag.FIXED_NOREPLACE;
        root.step(Phase.FILES, 'mmap', [scratch, sizeBytes, access, how, memfd ?? -1, 0n], options);
      } else root.step(Phase.FILES, 'shmat', [segment, scratch, 0], options);
      for (const run of object.content.runs)
        root.fills.push({
          // not through userfaultfd: the others would not wait for pages of a mapping that is not theirs
          method: kMethodMem,
          address: object.scratch + run.start,
          pageCount: (run.end - run.start) / kPageBytes,
          pageFile: this.#ctx.plan.pageFile(run.file),
          fileOffsetBytes: run.offset,
        });
    }
  }

  /** Everything above this is the task's, when it begins to map its memory. */
  get end(): bigint {
    return this.#start + this.lengthBytes;
  }

  /** The mapping itself; advice and locks are as with others. */
  map(builder: TaskBuilder, vma: vma_entry, from: string): void {
    const object = isSegment(vma)
      ? this.#segments.get(vma.shmid)
      : this.#objects.get(this.#anonymous(vma)?.shmid ?? -1n);
    if (object === undefined) {
      if (isSegment(vma)) this.#objectToSegment(vma, from);
      return;
    }
    if (isSegment(vma) && attachSegment(builder, vma, object.sizeBytes, from)) return;
    // An old length of 0 makes another mapping of the same memory, mremap(2).
    builder.step(
      Phase.MEMORY,
      'mremap',
      [object.scratch + vma.pgoff, 0n, vma.end - vma.start, kMremapMayMoveFixed, vma.start],
      { from, expected: vma.start, note: `shared memory ${object.shmid}` },
    );
    if (vma.prot !== (prot.READ | prot.WRITE))
      builder.step(Phase.MEMORY, 'mprotect', [vma.start, vma.end - vma.start, vma.prot], { from });
  }

  #objectToSegment(vma: vma_entry, from: string): void {
    this.#ctx.object(
      'IMAGE_FEATURE_UNSUPPORTED',
      `${from} is the System V shared memory segment ${vma.shmid}, which does not come with the images`,
      { address: vma.start },
    );
  }

  /** When the task has its mappings; the root, through which the objects are filled, when that is done. */
  leave(builder: TaskBuilder, from: string): void {
    if (this.lengthBytes === 0n) return;
    const phase = builder.index === 0 ? Phase.THREADS : Phase.MEMORY;
    builder.step(phase, 'munmap', [this.#start, this.lengthBytes], { from, note: 'where shared memory was made' });
  }
}

const kMethodMem = 1;

/** Where the content of an object is; no runs after objecting, and where nothing is but zeroes. */
function contentOf(ctx: CompileContext, shmid: bigint): PageMap {
  const map = readPageMap(ctx, 'pagemap-shmem', shmid);
  return map === undefined || map === 'absent' ? { runs: [] } : map;
}
