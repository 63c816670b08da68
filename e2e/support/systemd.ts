// What a real systemd (hack/systemd-host.ts) has: the scope of the container "c1",
// and those that managers ask for.
import assert from 'node:assert/strict';
import { cgroupDirectories, processesIn } from './cgroups.js';
import { readOrEmpty } from './processes.js';
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

/** The scope is delegated, in its slice, and holds the process and nothing but what a counter is made of. */
export async function assertScopeHolds(unit: string, hostPid: number, inSlice: string): Promise<void> {
  assert.equal(await property('ActiveState', unit), 'active');
  assert.equal(await property('Slice', unit), inSlice);
  assert.equal(await property('Delegate', unit), 'yes');
  const held = processesIn(await property('ControlGroup', unit));
  assert.ok(held.includes(hostPid), `${hostPid} is not among ${held.join(' ')}`);
  for (const one of held) assert.match(readOrEmpty(`/proc/${one}/comm`), /^(sh|sleep|)$/m, `process ${one}`);
}

/**
 * Neither systemd nor a hierarchy knows anything of it any more. Managers clear away after the scope what systemd does
 * not have: hierarchies of v1 that are none of its own.
 */
export async function assertScopeGone(unit: string, cgroup: string): Promise<void> {
  await waitFor(
    `${unit} to go`,
    async () =>
      (await property('LoadState', unit)) === 'not-found' && cgroupDirectories(cgroup).length === 0 ? true : undefined,
    { seen: () => [...cgroupDirectories(cgroup), ...processesIn(cgroup)].join(' ') },
  );
}
