// pagemap images, of private and of shared memory alike: which pages there are,
// and where in their page file.
import type { PageRun as CapturedRun } from '../../../nativecore/schema/messages.js';
import type { CompileContext } from '../compile-context.js';
import type { ImageSetWriter } from '../image-set.js';
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
  },
): void {
  images.addAs(map.kind, map.id, 'pagemap_head', { pages_id: map.pagesId });
  for (const run of map.runs) {
    images.add(map.kind, map.id, {
      vaddr: run.address,
      // CRIU 4.2 reads nr_pages; older readers, and checkpointctl among them, know this field only.
      compat_nr_pages: Number(run.pageCount <= 0xffffffffn ? run.pageCount : 0n),
      flags: pageFlag.PRESENT,
      nr_pages: run.pageCount,
    });
  }
}

// ---- images to plan

export interface PageRun {
  readonly start: bigint;
  readonly end: bigint;
  /** In the page file. */
  readonly offset: bigint;
}

export interface PageMap {
  readonly file: string;
  readonly runs: readonly PageRun[];
}

/** "absent": there is no such image. Undefined after objecting. */
export function readPageMap(
  ctx: CompileContext,
  kind: PageMapKind,
  id: number | bigint,
): PageMap | 'absent' | undefined {
  const [head, ...entries] = ctx.images.set.entries(kind, id);
  if (head === undefined) return 'absent';
  const image = `${kind}-${id}.img`;
  const file = pageFileName(ctx.images.set, (head.message as unknown as { pages_id: number }).pages_id);
  const runs: PageRun[] = [];
  let offset = 0n;
  let end = 0n;
  for (const { message: entry } of entries) {
    const pages = entry.nr_pages ?? BigInt(entry.compat_nr_pages);
    const flags = entry.flags ?? (entry.in_parent === true ? pageFlag.PARENT : pageFlag.PRESENT);
    const runEnd = entry.vaddr + pages * kPageBytes;
    if (entry.vaddr % kPageBytes !== 0n || entry.vaddr < end || pages === 0n || runEnd > kTaskEnd) {
      ctx.object('IMAGE_CORRUPT', `"${image}" is not in order at 0x${entry.vaddr.toString(16)}`, { image });
      return undefined;
    }
    end = runEnd;
    if ((flags & pageFlag.PRESENT) === 0) {
      ctx.object(
        'IMAGE_FEATURE_UNSUPPORTED',
        `"${image}" leaves pages to a parent checkpoint or a page server`,
        { image },
        'use a full checkpoint',
      );
      return undefined;
    }
    runs.push({ start: entry.vaddr, end: runEnd, offset });
    offset += pages * kPageBytes;
  }
  const size = pageFileBytes(ctx.images.set, file);
  if (offset > 0n && (size === undefined || BigInt(size) < offset)) {
    ctx.object(
      size === undefined ? 'IMAGE_MISSING' : 'IMAGE_CORRUPT',
      size === undefined ? `"${file}" is missing` : `"${file}" is truncated (${size} bytes, wanted ${offset})`,
      { image: file },
      'use a complete copy of the checkpoint',
    );
    return undefined;
  }
  return { file, runs };
}
