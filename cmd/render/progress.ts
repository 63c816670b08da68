// One line on a terminal that says how far long work has come. Nothing where
// standard error is no terminal, and nothing for work that is soon done.
import { bytesText } from './table.js';

const kFirstAfterMs = 1000;
const kEveryMs = 200;

/** `totalBytes` 0: unknown. */
export function progressLine(what: string): (doneBytes: number, totalBytes: number) => void {
  if (!process.stderr.isTTY) return () => undefined;
  const startedAt = performance.now();
  let next = startedAt + kFirstAfterMs;
  let shown = false;
  process.on('exit', () => void (shown && process.stderr.write('\r\u001b[K')));
  return (doneBytes, totalBytes) => {
    const now = performance.now();
    if (now < next) return;
    next = now + kEveryMs;
    shown = true;
    const rate = bytesText((doneBytes * 1000) / (now - startedAt));
    const part = totalBytes > 0 ? ` of ${bytesText(totalBytes)} (${Math.floor((doneBytes / totalBytes) * 100)} %)` : '';
    process.stderr.write(`\r${what}: ${bytesText(doneBytes)}${part}, ${rate}/s\u001b[K`);
  };
}
