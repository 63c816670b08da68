// Details of the checkpoint sequence.
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { PageFile, PageMap, Timing } from '../nativecore/index.js';
import { readText } from './container/index.js';
import { timingUs, type DumpTimings } from './engine/index.js';
import { fileError } from './errors/index.js';
import type { LogFile } from './core-session.js';

/** One directory is enough per hierarchy that counts processes: the freezer's, the unified one's, or devices'. */
export function cgroupDirectoriesOf(paths: ReadonlyMap<string, string>): string[] {
  const first = paths.get('devices') ?? paths.get('freezer') ?? paths.get('') ?? [...paths.values()][0];
  return first === undefined ? [] : [first];
}

/** Mount points of tmpfs whose content is the container's own: not given from outside, not part of another mount. */
export function liveTmpfsMounts(initHostPid: number, externalMounts: ReadonlyMap<string, string>): string[] {
  const result: string[] = [];
  for (const line of readText(`/proc/${initHostPid}/mountinfo`).split('\n')) {
    const [before, after] = line.split(' - ');
    const [, , , root, escaped] = (before ?? '').split(' ');
    if (root !== '/' || escaped === undefined || after?.startsWith('tmpfs ') !== true) continue;
    const mountPoint = unescapeMountPath(escaped);
    if (!externalMounts.has(mountPoint)) result.push(mountPoint);
  }
  return result;
}

/** proc(5): space, tab, newline and backslash are written as octal. */
export function unescapeMountPath(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_match, digits: string) => String.fromCharCode(parseInt(digits, 8)));
}

/** The images are complete by then: a failure here is told in the log and does not make the checkpoint a failed one. */
export function writeStats(
  directory: string,
  file: { readonly name: string; readonly bytes: Uint8Array },
  log: LogFile,
): void {
  const path = join(directory, file.name);
  try {
    rmSync(path, { force: true });
    writeFileSync(path, file.bytes, { mode: 0o600 });
  } catch (error) {
    log.write([fileError('cannot write the statistics', path, error).message]);
  }
}

/**
 * Frozen is from the first seize to the thaw; a tree that is to end is frozen for good once its pages are written.
 * `all`: the timings of the core's last answer, which has those of the earlier ones too.
 */
export function dumpTimings(pageMap: PageMap, all: readonly Timing[]): DumpTimings {
  const start = all.find(({ phase }) => phase === 'freeze')?.startNs ?? 0n;
  const last = all.find(({ phase }) => phase === 'thaw') ?? all.findLast(({ phase }) => phase === 'write pages');
  return {
    freezingUs: timingUs(all, 'freeze'),
    frozenUs: Number(((last?.endNs ?? start) - start) / 1000n),
    memoryReadUs: timingUs(all, 'scan pages'),
    memoryWriteUs: timingUs(all, 'write pages'),
    pagesScanned: pageMap.scannedPages,
    pagesWritten: pageMap.tasks.reduce((sum, task) => task.runs.reduce((pages, run) => pages + run.pageCount, sum), 0n),
    pagesSkipped: pageMap.tasks.reduce(
      (sum, task) => task.unchangedRuns.reduce((pages, run) => pages + run.pageCount, sum),
      0n,
    ),
  };
}

/** CaptureRequest.pageWriting. Who waits for the disk has it begin at once; a disk that nobody waits for is left alone. */
export const pageWritingOf = (direct: boolean, waitsForDisk: boolean): number => (direct ? 2 : waitsForDisk ? 1 : 0);

/** Undefined: what was to go past the page cache has done so. */
export function cacheRemark(files: readonly PageFile[]): string | undefined {
  const cached = files.filter(({ direct, sizeBytes }) => !direct && sizeBytes > 0n);
  if (cached.length === 0) return undefined;
  const which = cached.length === files.length ? 'page files' : `${cached.length} of ${files.length} page files`;
  return `${which} went through the page cache in spite of --direct-io: the file system of the images does not write past it, or they were written while the container stood still`;
}
