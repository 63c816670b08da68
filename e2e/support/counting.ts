// Counters: what shows that a container goes on, and with what it had.
import assert from 'node:assert/strict';
import type { Container } from './container.js';
import { waitFor } from './wait.js';

/** 1, 2, 3 and so on: nothing is lost, doubled or out of order. */
export function assertWithoutGap(numbers: readonly number[]): void {
  assert.deepEqual(
    numbers,
    numbers.map((_, index) => index + 1),
  );
}

/** It prints more. */
export async function assertCounting(container: Container): Promise<void> {
  const before = container.output().length;
  await waitFor('the container to count', () => (container.output().length > before ? true : undefined));
}

/** Waits until the log of a counter has more lines, and returns all its numbers. */
export async function countOn(name: string, readLog: () => Promise<string>): Promise<readonly number[]> {
  const numbers = async (): Promise<number[]> => (await readLog()).split('\n').filter(Boolean).map(Number);
  const before = (await numbers()).length;
  return await waitFor(`more output of ${name}`, async () => {
    const now = await numbers();
    return now.length > before ? now : undefined;
  });
}
