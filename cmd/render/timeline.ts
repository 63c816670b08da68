// Where the time of a checkpoint went, as bars.
import type { TimelineEntry } from '../../runtime-shim/timings-file.js';
import { printable } from './description.js';
import { table } from './table.js';

const kWidth = 40;
/** What takes less of the whole is left out. */
const kSmallestShare = 0.01;

export function renderTimeline(entries: readonly TimelineEntry[]): string {
  const from = Math.min(...entries.map(({ startUs }) => startUs));
  const span = Math.max(...entries.map(({ startUs, durationUs }) => startUs + durationUs)) - from;
  if (!(span > 0)) return '';
  const told = entries.filter(({ durationUs }) => durationUs >= span * kSmallestShare);
  const rows = told.map(({ phase, startUs, durationUs }) => {
    const first = Math.min(Math.floor(((startUs - from) / span) * kWidth), kWidth - 1);
    const last = Math.min(Math.max(Math.ceil(((startUs + durationUs - from) / span) * kWidth), first + 1), kWidth);
    const bar = `${' '.repeat(first)}${'█'.repeat(last - first)}`.padEnd(kWidth);
    return `  ${table([[printable(phase).padEnd(18), `${(durationUs / 1000).toFixed(1)} ms`.padStart(12), bar]])}`.trimEnd();
  });
  return ['time', ...rows].join('\n');
}
