// A manager that a test of its own has: opened when the test begins, closed with it.
import { requires, type Need } from './lanes.js';
import type { TestBed } from './test-bed.js';

/** For the test that begins: skipped where the lane has not what it `needs`, ended with it. */
export async function openFor<Manager extends { close(): Promise<void> }>(
  context: Mocha.Context,
  bed: TestBed,
  needs: readonly Need[],
  open: () => Promise<Manager>,
): Promise<Manager> {
  context.timeout(120_000);
  requires(context, 'root', 'built', ...needs);
  const manager = await open();
  bed.onClose(() => manager.close());
  return manager;
}
