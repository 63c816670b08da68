import assert from 'node:assert/strict';
import { parseTimings, timelineOf, timingsFile } from '../../runtime-shim/timings-file.js';
import { estimateOf, progressJson, progressLine } from './progress.js';
import { renderTimeline } from './timeline.js';

const timings = [
  { phase: 'freeze', startNs: 1_000_000_000n, endNs: 1_025_000_000n },
  { phase: 'write pages', startNs: 1_025_000_000n, endNs: 1_100_000_000n },
  { phase: 'thaw', startNs: 1_100_000_000n, endNs: 1_100_010_000n },
  { phase: 'total', startNs: 1_000_000_000n, endNs: 1_100_010_000n },
];

describe('the timeline of a checkpoint', () => {
  it('comes out of its file as it went in', () => {
    const text = Buffer.from(timingsFile(timings).bytes).toString();
    assert.deepEqual(parseTimings(text), timelineOf(timings));
    assert.deepEqual(parseTimings(text)?.[1], { phase: 'write pages', startUs: 25_000, durationUs: 75_000 });
  });

  it('draws bars where phases lie, and leaves out what took no time', () => {
    const lines = renderTimeline(timelineOf(timings)).split('\n');
    assert.deepEqual(
      lines.map((line) => line.trim().split(/ {2,}/)[0]),
      ['time', 'freeze', 'write pages', 'total'],
    );
    assert.match(lines[1]!, /25\.0 ms {2}█{10}$/);
    assert.match(lines[2]!, /75\.0 ms {11,12}█{30,31}$/);
  });

  it('does not draw what a file that was made up says', () => {
    const wild = [{ phase: '\u001b[2Jx', startUs: -1e15, durationUs: 1e300 }];
    const text = renderTimeline(wild);
    assert.ok(!text.includes('\u001b') && text.length < 300, text);
    assert.equal(renderTimeline([]), '');
    assert.throws(() => parseTimings('{"version":1,"phases":[{"phase":1}]}'));
  });
});

describe('progress', () => {
  const half = { phase: 'write pages', doneBytes: 512 << 20, totalBytes: 1 << 30 };

  it('has bytes, rate and time left in its line', () => {
    assert.equal(progressLine(half, 500), 'write pages: 512.0 MiB of 1.0 GiB (50 %), 1.0 GiB/s, 1 s left');
  });

  it('is one JSON object for programs', () => {
    assert.deepEqual(JSON.parse(progressJson(half, 500)), { ...half, bytesPerSecond: 1 << 30, secondsLeft: 0.5 });
    assert.equal(JSON.parse(progressJson(half, 0)).secondsLeft, null);
  });

  it('knows no time left without a total', () => {
    assert.equal(estimateOf({ phase: 'x', doneBytes: 10, totalBytes: 0 }, 1000).secondsLeft, undefined);
  });
});
