// One line on a terminal that says how far long work has come. Nothing where
// standard error is no terminal, and nothing for work that is soon done.
import { bytesText } from './table.js';

const kFirstAfterMs = 1000;
const kEveryMs = 200;
const kClearLine = '\r\u001b[K';

export interface Progress {
  /** `totalBytes` 0: unknown. */
  at(doneBytes: number, totalBytes: number): void;
  /** The same, counted here. */
  readonly add: (count: number) => void;
}

/** The line is gone when the work has ended, however it did. */
export async function withProgress<T>(what: string, work: (progress: Progress) => Promise<T>): Promise<T> {
  const startedAt = performance.now();
  let next = process.stderr.isTTY ? startedAt + kFirstAfterMs : Infinity;
  let shown = false;
  let added = 0;
  const at = (doneBytes: number, totalBytes: number): void => {
    const now = performance.now();
    if (now < next) return;
    next = now + kEveryMs;
    shown = true;
    const rate = bytesText((doneBytes * 1000) / (now - startedAt));
    const part = totalBytes > 0 ? ` of ${bytesText(totalBytes)} (${Math.floor((doneBytes / totalBytes) * 100)} %)` : '';
    process.stderr.write(`${kClearLine}${what}: ${bytesText(doneBytes)}${part}, ${rate}/s`);
  };
  try {
    return await work({ at, add: (count) => at((added += count), 0) });
  } finally {
    if (shown) process.stderr.write(kClearLine);
  }
}
