// A restore under the systemd cgroup driver: what would have to be made, and why
// it is not. A scope exists only if systemd has been asked for it over D-Bus; a
// directory made in its place is one that systemd takes away.
import { statSync } from 'node:fs';
import { FormatError } from '../oci-spec/json.js';
import { systemdCgroup, type SystemdCgroup } from '../oci-spec/systemd-cgroup.js';
import type { Bundle } from './bundle.js';
import { StasisError } from './errors/index.js';

const kCgroupfsHint = 'use the cgroupfs driver (podman: --cgroup-manager=cgroupfs)';

export function refuseSystemdCgroup(id: string, bundle: Bundle): never {
  const goal = `cannot restore container ${JSON.stringify(id)}`;
  let cgroup: SystemdCgroup;
  try {
    cgroup = systemdCgroup(bundle.spec, id);
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    throw new StasisError({
      code: 'BUNDLE_INVALID',
      message: `${goal} with --systemd-cgroup: ${error.message}`,
      subject: { container: id },
      hint: 'repair config.json, or leave --systemd-cgroup out',
      cause: error,
    });
  }
  const runs = statSync('/run/systemd/system', { throwIfNoEntry: false })?.isDirectory() === true;
  throw new StasisError({
    code: runs ? 'OPTION_NOT_BUILT' : 'ENVIRONMENT',
    message: runs
      ? `${goal} with --systemd-cgroup: only systemd can make its cgroup, ${cgroup.path}, and asking it to is not built yet`
      : `${goal} with --systemd-cgroup: only systemd can make its cgroup, ${cgroup.path}, and systemd does not run on this machine`,
    subject: { container: id },
    hint: kCgroupfsHint,
  });
}
