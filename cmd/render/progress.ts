// How far long work has come: one line on a terminal, or lines of JSON where
// --progress json was given (docs/progress.md). Nothing else where standard
// error is no terminal, and no line on a terminal for work that is soon done.
import { isatty } from 'node:tty';
import type { OnProgress, WorkProgress } from '../../runtime-shim/phase-clock.js';
import { bytesText } from './table.js';

const kStandardError = 2;
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

/** What a phase has left, at the rate that it has had until now. */
export function estimateOf({ doneBytes, totalBytes }: WorkProgress, elapsedMs: number): Estimate {
  const bytesPerSecond = elapsedMs <= 0 ? 0 : Math.round((doneBytes * 1000) / elapsedMs);
  const known = totalBytes >= doneBytes && bytesPerSecond > 0;
  return { bytesPerSecond, secondsLeft: known ? (totalBytes - doneBytes) / bytesPerSecond : undefined };
}

export interface Estimate {
  readonly bytesPerSecond: number;
  /** undefined: not known. */
  readonly secondsLeft: number | undefined;
}

export function progressLine(progress: WorkProgress, elapsedMs: number): string {
  const { phase, doneBytes, totalBytes } = progress;
  const { bytesPerSecond, secondsLeft } = estimateOf(progress, elapsedMs);
  const part = totalBytes > 0 ? ` of ${bytesText(totalBytes)} (${Math.floor((doneBytes / totalBytes) * 100)} %)` : '';
  const left = secondsLeft === undefined ? '' : `, ${Math.ceil(secondsLeft)} s left`;
  return `${phase}: ${bytesText(doneBytes)}${part}, ${bytesText(bytesPerSecond)}/s${left}`;
}

export function progressJson(progress: WorkProgress, elapsedMs: number): string {
  const { bytesPerSecond, secondsLeft } = estimateOf(progress, elapsedMs);
  return JSON.stringify({
    ...progress,
    bytesPerSecond,
    secondsLeft: secondsLeft === undefined ? null : Number(secondsLeft.toFixed(1)),
  });
}

/** `json`: one object a line, every kEveryMs and at the end of a phase. */
export async function showProgress<T>(
  json: boolean,
  work: (onProgress: OnProgress | undefined) => Promise<T>,
): Promise<T> {
  // Not process.stderr.isTTY: that would make a stream of it, which a command without a word to say has no use for.
  if (!json && !isatty(kStandardError)) return await work(undefined);
  const startedAt = performance.now();
  let phase = '';
  let phaseAt = startedAt;
  let next = json ? 0 : startedAt + kFirstAfterMs;
  let shown = false;
  const onProgress: OnProgress = (progress) => {
    const now = performance.now();
    if (progress.phase !== phase) [phase, phaseAt] = [progress.phase, now];
    const ended = progress.doneBytes === progress.totalBytes;
    if (now < next && !(json && ended)) return;
    next = now + kEveryMs;
    shown = true;
    if (json) process.stderr.write(`${progressJson(progress, now - phaseAt)}\n`);
    else process.stderr.write(`${kClearLine}${progressLine(progress, now - phaseAt)}`);
  };
  try {
    return await work(onProgress);
  } finally {
    if (shown && !json) process.stderr.write(kClearLine);
  }
}
