// The scope of the container "c1" under a real systemd (hack/systemd-host.ts).
import assert from 'node:assert/strict';
import type { Container } from './container.js';
import { run } from './run.js';
import { waitFor } from './wait.js';

export const scope = 'stasis-c1.scope';
export const slice = 'stasistest-e2e.slice';

/** Of the scope, as `systemctl show` prints it. */
export async function property(name: string): Promise<string> {
  const result = await run('systemctl', ['show', '--value', '--property', name, scope]);
  assert.equal(result.exitCode, 0, result.stderr);
  return result.stdout.trim();
}

export async function assertCounting(container: Container): Promise<void> {
  const before = container.output().length;
  await waitFor('the container to count', () => (container.output().length > before ? true : undefined));
}
