// Waiting for what the kernel tells nobody about.
import { setTimeout as pause } from 'node:timers/promises';

const kLongestIntervalMs = 16;

/** Looks at once and then at growing intervals; false if the time is up first. */
export async function pollUntil(condition: () => boolean | Promise<boolean>, timeoutMs: number): Promise<boolean> {
  const end = performance.now() + timeoutMs;
  for (let intervalMs = 1; !(await condition()); intervalMs = Math.min(intervalMs * 2, kLongestIntervalMs)) {
    if (performance.now() >= end) return false;
    await pause(intervalMs);
  }
  return true;
}
