// Waiting for a condition with a deadline. What is watched are files and
// processes of others, for which there is no event to wait on: so it is asked
// again and again, quickly at first.
import { setTimeout as pause } from 'node:timers/promises';

/**
 * Asks `probe` until it returns something else than undefined.
 * A timeout says what was awaited and what `seen` saw last.
 */
export async function waitFor<T>(
  what: string,
  probe: () => T | undefined | Promise<T | undefined>,
  options: { readonly timeoutMs?: number; readonly seen?: () => string } = {},
): Promise<T> {
  const timeoutMs = options.timeoutMs ?? 15_000;
  const deadline = performance.now() + timeoutMs;
  for (let delayMs = 1; ; delayMs = Math.min(delayMs * 2, 50)) {
    const found = await probe();
    if (found !== undefined) return found;
    if (performance.now() > deadline) {
      const seen = options.seen === undefined ? '' : `; seen: ${options.seen()}`;
      throw new Error(`waited ${timeoutMs} ms in vain for ${what}${seen}`);
    }
    await pause(delayMs);
  }
}
