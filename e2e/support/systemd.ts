// What a real systemd (hack/systemd-host.ts) has: the scope of the container "c1",
// and those that managers ask for.
import assert from 'node:assert/strict';
import type { Container } from './container.js';
import { run } from './run.js';
import { waitFor } from './wait.js';

export const scope = 'stasis-c1.scope';
export const slice = 'stasistest-e2e.slice';

/** Whether managers are told to ask systemd for cgroups, from STASIS_CGROUP_MANAGER, which hack/run-tests.ts sets. */
export function managersUseSystemd(): boolean {
  return process.env['STASIS_CGROUP_MANAGER'] === 'systemd';
}

/** As `systemctl show` prints it. */
export async function property(name: string, unit = scope): Promise<string> {
  const result = await run('systemctl', ['show', '--value', '--property', name, unit]);
  assert.equal(result.exitCode, 0, result.stderr);
  return result.stdout.trim();
}

export async function assertCounting(container: Container): Promise<void> {
  const before = container.output().length;
  await waitFor('the container to count', () => (container.output().length > before ? true : undefined));
}
