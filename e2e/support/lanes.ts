// A lane is the environment that a run of the suite happens in. It declares
// what it provides; a test that needs something provided and does not find it
// fails instead of being skipped.
import { existsSync } from 'node:fs';
import { release } from 'node:os';
import type { Context } from 'mocha';
import { cgroupVersion } from './cgroups.js';
import { daemonsAreInstalled } from './daemon.js';
import { peerDirectory, stasisProgram } from './paths.js';
import { chosenPodman, isInstalled } from './podman-sets.js';

export type Need =
  | 'root'
  | 'cgroup-v1'
  | 'cgroup-v2'
  | 'built'
  | 'peers'
  | 'podman'
  | 'daemons'
  | 'systemd'
  | 'userfaultfd-device'
  | `kernel>=${number}.${number}`;

/** Name of the lane, from STASIS_LANE, which hack/run-tests.ts sets. */
export function laneName(): string {
  return process.env['STASIS_LANE'] ?? `v${cgroupVersion()}`;
}

/** What this lane promises, from STASIS_LANE_PROVIDES. */
function provided(): readonly string[] {
  return (process.env['STASIS_LANE_PROVIDES'] ?? '').split(',').filter(Boolean);
}

/** Skips the test where a need is not met, unless the lane provides it: then that is a failure. */
export function requires(context: Context, ...needs: readonly Need[]): void {
  for (const need of needs) {
    if (isMet(need)) continue;
    if (provided().includes(need)) throw new Error(`lane ${laneName()} provides ${need}, but it is not there`);
    console.log(`      skipped: needs ${need}`);
    context.skip();
  }
}

function isMet(need: Need): boolean {
  switch (need) {
    case 'root':
      return process.getuid?.() === 0;
    case 'cgroup-v1':
      return cgroupVersion() === 1;
    case 'cgroup-v2':
      return cgroupVersion() === 2;
    case 'built':
      return existsSync(stasisProgram);
    case 'podman':
      return isInstalled(chosenPodman());
    case 'daemons':
      return daemonsAreInstalled();
    case 'systemd':
      return existsSync('/run/systemd/private');
    case 'userfaultfd-device':
      return existsSync('/dev/userfaultfd'); // Linux 6.1
    case 'peers':
      return existsSync(`${peerDirectory}/complete`);
    default:
      return kernelAtLeast(need.slice('kernel>='.length));
  }
}

function kernelAtLeast(wanted: string): boolean {
  const [major = 0, minor = 0] = release().split('.').map(Number);
  const [wantedMajor = 0, wantedMinor = 0] = wanted.split('.').map(Number);
  return major > wantedMajor || (major === wantedMajor && minor >= wantedMinor);
}
