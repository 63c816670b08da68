// Raw capture to images: every room writes its part, objections are collected
// in one pass, the inventory comes last because its presence means "complete".
import type { Capture, PageMap, Timing } from '../../nativecore/schema/messages.js';
import { criu_pre_dump_mode, type inventory_entry, type task_kobj_ids_entry } from '../../oci-spec/images/messages.js';
import type { Degradation, StasisError } from '../errors/index.js';
import { EncodeContext } from './encode-context.js';
import { ImageSetReader, ImageSetWriter, type ImageFile, type ImageSource } from './image-set.js';
import type { EncodeOptions } from './options.js';
import { rooms } from './resources/index.js';
import { addPageMap, intersectRuns, knownPages } from './resources/page-map.js';
import { encodeSharedPageMaps } from './resources/shared-memory.js';
import { namespaceIds } from './resources/task.js';

export interface EncodedImages {
  /** All but the inventory. */
  readonly files: readonly ImageFile[];
  /** Written last: a directory without it is no checkpoint. */
  readonly inventory: ImageFile;
  readonly objections: readonly StasisError[];
  readonly degradations: readonly Degradation[];
  readonly summary: EncodeSummary;
}

export interface EncodeSummary {
  readonly tasks: number;
  readonly threads: number;
  readonly zombies: number;
  readonly mappings: number;
  readonly openFiles: number;
  readonly rootPid: number;
}

const kImageVersion = 2;
const kNoLsm = 0;
const kNanosecondsPerMicrosecond = 1000n;
const kNoNetworkLock = 2;

/** Preconditions: the capture is of version 1. An image set with objections must not be kept. */
export function encodeImages(capture: Capture, options: EncodeOptions): EncodedImages {
  const ctx = new EncodeContext(capture, options);
  for (const room of rooms) room.encode?.(ctx);
  for (const task of ctx.tasks) {
    const draft = ctx.draft(task);
    if (task.raw.zombie) {
      // nothing of a thread is left; the process part tells how it ended
      ctx.images.add('core', task.nsPid, { mtype: draft.core.mtype, tc: draft.core.tc });
      continue;
    }
    for (const [tid, core] of draft.threads) ctx.images.add('core', tid, core);
  }
  const inventory = new ImageSetWriter();
  inventory.add('inventory', undefined, inventoryOf(ctx));
  return {
    files: ctx.images.files(),
    inventory: inventory.files()[0] as ImageFile,
    objections: ctx.objections,
    degradations: ctx.degradations,
    summary: {
      tasks: ctx.tasks.length,
      threads: capture.tasks.reduce((count, task) => count + task.threads.length, 0),
      zombies: capture.tasks.filter((task) => task.zombie).length,
      mappings: ctx.tasks.reduce((count, task) => count + (ctx.draft(task).mm?.vmas.length ?? 0), 0),
      openFiles: capture.openFiles.length,
      rootPid: ctx.root.nsPid,
    },
  };
}

function inventoryOf(ctx: EncodeContext): inventory_entry {
  const own: task_kobj_ids_entry = {
    vm_id: 1,
    files_id: 1,
    fs_id: 1,
    sighand_id: 1,
    ...namespaceIds(ctx, ctx.capture.host?.ownNamespaces ?? []),
  };
  return {
    img_version: kImageVersion,
    fdinfo_per_id: true,
    root_ids: own,
    ns_per_id: true,
    lsmtype: kNoLsm,
    network_lock_method: kNoNetworkLock,
    plugins_entry: { plugins: [] },
    ...ctx.inventory,
  };
}

/** What makes a directory with memory only: it is no checkpoint, and a parent of one. */
export function preDumpInventory(capture: Capture): ImageFile {
  const images = new ImageSetWriter();
  images.add('inventory', undefined, {
    img_version: kImageVersion,
    fdinfo_per_id: true,
    ns_per_id: true,
    dump_uptime: capture.host?.boottimeNs === undefined ? 0n : capture.host.boottimeNs / kNanosecondsPerMicrosecond,
    pre_dump_mode: criu_pre_dump_mode.VM_READ,
  });
  return images.files()[0] as ImageFile;
}

/** pagemap-<pid> of every live task; page data themselves were written by the capture. */
export function encodePageMaps(capture: Capture, pageMap: PageMap, parent?: ImageSource): readonly ImageFile[] {
  const parentSet = parent === undefined ? undefined : new ImageSetReader(parent);
  const images = new ImageSetWriter();
  const byHostPid = new Map(pageMap.tasks.map((task) => [task.hostPid, task]));
  let pagesId = 0;
  for (const task of capture.tasks) {
    if (task.zombie) continue;
    pagesId += 1;
    const nsPid = task.nsPids.at(-1) ?? task.hostPid;
    const pages = byHostPid.get(task.hostPid);
    // A page that has not changed and that the parent does not have was all zeroes there, and is again.
    const unchanged = pages?.unchangedRuns ?? [];
    const parentRuns =
      parentSet === undefined || unchanged.length === 0 ? [] : intersectRuns(unchanged, knownPages(parentSet, nsPid));
    addPageMap(images, {
      kind: 'pagemap',
      id: nsPid,
      pagesId: pages?.pagesId ?? pagesId,
      runs: pages?.runs ?? [],
      parentRuns,
    });
  }
  encodeSharedPageMaps(capture, pageMap, images);
  return images.files();
}

export interface DumpTimings {
  readonly freezingUs: number;
  readonly frozenUs: number;
  readonly memoryReadUs: number;
  readonly memoryWriteUs: number;
  readonly pagesScanned: bigint;
  readonly pagesWritten: bigint;
  /** Left to the parent. */
  readonly pagesSkipped: bigint;
}

export interface RestoreTimings {
  readonly forkingUs: number;
  readonly restoreUs: number;
  readonly pagesRestored: bigint;
}

/** The bytes of stats-dump or stats-restore. */
export function encodeStats(stats: { readonly dump: DumpTimings } | { readonly restore: RestoreTimings }): ImageFile {
  const images = new ImageSetWriter();
  if ('dump' in stats) {
    const { dump } = stats;
    images.add('stats-dump', undefined, {
      dump: {
        freezing_time: dump.freezingUs,
        frozen_time: dump.frozenUs,
        memdump_time: dump.memoryReadUs,
        memwrite_time: dump.memoryWriteUs,
        pages_scanned: dump.pagesScanned,
        pages_skipped_parent: dump.pagesSkipped,
        pages_written: dump.pagesWritten,
        pages_lazy: 0n,
      },
    });
  } else {
    const { restore } = stats;
    images.add('stats-restore', undefined, {
      restore: {
        pages_compared: 0n,
        pages_skipped_cow: 0n,
        forking_time: restore.forkingUs,
        restore_time: restore.restoreUs,
        pages_restored: restore.pagesRestored,
      },
    });
  }
  return images.files()[0] as ImageFile;
}

/** Microseconds of a native phase, 0 if it did not happen. */
export function timingUs(timings: readonly Timing[], phase: string): number {
  return timings
    .filter((timing) => timing.phase === phase)
    .reduce((sum, timing) => sum + Number((timing.endNs - timing.startNs) / 1000n), 0);
}
