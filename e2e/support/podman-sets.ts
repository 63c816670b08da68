// The podmans that the tests drive, each with the base runtime, conmon and
// helpers that belong to it. STASIS_PODMAN chooses one; hack/run-tests.ts runs
// the tests with each.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { managersDirectory } from './paths.js';

/** Where hack/managers unpacks Debian sid's. */
export const sidDirectory = join(managersDirectory, 'sid');

export interface PodmanSet {
  readonly what: string;
  readonly podman: string;
  /** What /etc/stasis/config.json names: podman passes no variables on to most verbs. undefined: as stasis finds it. */
  readonly base: string | undefined;
  readonly conmon: string;
  /** Directories of netavark and the like; undefined: as podman finds them. */
  readonly helpers: readonly string[] | undefined;
  readonly major: 4 | 5;
}

const sid = (path: string): string => join(sidDirectory, path);
const sidPodman = {
  podman: sid('usr/bin/podman'),
  conmon: sid('usr/bin/conmon'),
  helpers: [sid('usr/lib/podman'), sid('usr/libexec/podman')],
  major: 5,
} as const;

export const podmanSets = {
  debian: {
    what: "podman 4.3 with runc 1.1, Debian's",
    podman: '/usr/bin/podman',
    base: undefined,
    conmon: '/usr/bin/conmon',
    helpers: undefined,
    major: 4,
  },
  sid: { what: "podman 5 with runc 1.3, Debian sid's", ...sidPodman, base: sid('usr/sbin/runc') },
  // crun is used on pure cgroup v2 only.
  'sid-crun': { what: "podman 5 with crun, Debian sid's", ...sidPodman, base: sid('usr/bin/crun') },
} as const satisfies Record<string, PodmanSet>;

export type PodmanSetName = keyof typeof podmanSets;

export function chosenPodman(): PodmanSet {
  const name = process.env['STASIS_PODMAN'] ?? 'debian';
  if (!(name in podmanSets)) throw new Error(`STASIS_PODMAN is "${name}", which is none of the known ones`);
  return podmanSets[name as PodmanSetName];
}

export function isInstalled(set: PodmanSet): boolean {
  const complete = set.major === 4 || existsSync(sid('complete'));
  return complete && existsSync(set.podman) && existsSync(join(managersDirectory, 'stasis/bin/criu'));
}
