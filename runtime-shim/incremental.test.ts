import assert from 'node:assert/strict';
import type { PageMap } from '../nativecore/index.js';
import { comparisonRemark } from './incremental.js';

describe('the remark on a comparison with the parent checkpoint', () => {
  const task = (noted: boolean, unchanged: bigint): PageMap['tasks'][number] => ({
    hostPid: 1,
    pagesId: 1,
    runs: [],
    unchangedRuns: [{ address: 0n, pageCount: unchanged }],
    noted,
  });
  const remark = (comparedPages: bigint, tasks: PageMap['tasks'], obstacle?: string): string | undefined =>
    comparisonRemark(
      { tasks, comparedPages, timings: [], scannedPages: 0n, skippedZeroPages: 0n, shared: [], files: [] },
      { pages: { files: [], tasks: [], objects: [], ...(obstacle === undefined ? {} : { obstacle }) } },
    );

  it('says how much was equal, and of how many processes', () => {
    assert.equal(
      remark(10n, [task(false, 3n), task(false, 4n)]),
      "no note was kept of what changed since the parent checkpoint: 7 of 10 pages that were compared with the parent's are equal, and were left to it",
    );
    assert.match(remark(10n, [task(true, 100n), task(false, 4n)])!, /checkpoint, in 1 of 2 processes: 4 of 10 pages/);
  });

  it('says that there was none, and why', () => {
    assert.match(remark(0n, [task(false, 0n)], 'a reason')!, /^all memory was written: no note .* and a reason$/);
    assert.match(remark(0n, [task(false, 0n)])!, /and there was nothing to compare with$/);
  });

  it('is none where note was kept, or a process is new', () => {
    assert.equal(remark(0n, [task(true, 5n)]), undefined);
    assert.equal(remark(0n, [task(true, 5n), task(false, 0n)]), undefined);
  });
});
