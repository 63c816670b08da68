import { strictEqual, deepStrictEqual } from 'node:assert/strict';
import { limitCells, limitRows, ownHierarchy } from './limits.js';
import type { Measured } from './report.js';
import { workloads } from './workloads.js';

describe('limits of the kernel', () => {
  const workload = workloads.find(({ name }) => name === '1 GiB, random');
  if (workload === undefined) throw new Error('the workload has another name');
  const measured = (frozenMs: readonly number[]): Measured => ({
    workload,
    images: 'tmpfs',
    result: { stasis: { samples: frozenMs.map((value) => ({ frozenMs: value })) } },
  });
  const limits = { 'fork of 1 GiB, the first': [22, 20, 18], 'fork of 1 GiB, a later one': [9] };

  it('stand beside the medians that they bound', () => {
    deepStrictEqual(limitCells(limitRows(measured([24, 25, 90]), limits)), [
      ['fork of 1 GiB, the first', '20 ms', 'frozen 25 ms: 1.25 of it'],
      ['fork of 1 GiB, a later one', '9.00 ms', ''],
    ]);
  });

  it('are shown where nothing of ours was measured, or the limit was not', () => {
    deepStrictEqual(limitCells(limitRows(measured([]), { 'fork of 1 GiB, the first': [20] })), [
      ['fork of 1 GiB, the first', '20 ms', ''],
    ]);
    deepStrictEqual(limitCells(limitRows(measured([24]), { 'fork of 1 GiB, the first': [NaN] })), [
      ['fork of 1 GiB, the first', '-', ''],
    ]);
  });

  it('are those of a move between cgroups where there is a hierarchy of v1', () => {
    strictEqual(ownHierarchy('9:name=systemd:/\n4:cpuset:/\n3:cpu,cpuacct:/a/b\n2:pids:/\n0::/\n'), 'cpu,cpuacct/a/b');
    strictEqual(ownHierarchy('0::/system.slice\n'), undefined);
  });
});
