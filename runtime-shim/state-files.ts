// How the base runtime keeps a container: where its cgroup is, and the files in
// its state directory, written last, so that its verbs work on what we made.
import { readdirSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Parked } from '../nativecore/index.js';
import { crunCgroupPlace, formatCrunStatus, kEmptyDirectoryName } from '../oci-spec/crun-status.js';
import { cgroupPlace, toLibcontainerConfig, type CgroupPlace } from '../oci-spec/libcontainer-config.js';
import { formatRuncState } from '../oci-spec/runc-state.js';
import type { Bundle } from './bundle.js';
import { kNullDevice, ownDescriptorLinks, type BaseRuntimeVersion, type RuntimeFamily } from './container/index.js';
import { StasisError, fileError } from './errors/index.js';
import type { ContainerRestore } from './restore-request.js';
import { FormatError } from '../oci-spec/json.js';
import { systemdCgroup, type SystemdCgroup } from '../oci-spec/systemd-cgroup.js';

export function scopeOfContainer(
  family: RuntimeFamily,
  bundle: Bundle,
  request: Pick<ContainerRestore, 'id' | 'systemdCgroup'>,
): SystemdCgroup | undefined {
  if (!request.systemdCgroup) return undefined;
  try {
    return systemdCgroup(bundle.spec, request.id, family);
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    throw new StasisError({
      code: 'BUNDLE_INVALID',
      message: `cannot restore container ${JSON.stringify(request.id)} with --systemd-cgroup: ${error.message}`,
      subject: { container: request.id },
      hint: 'repair config.json, or leave --systemd-cgroup out',
      cause: error,
    });
  }
}

export function placeOfCgroup(
  family: RuntimeFamily,
  bundle: Bundle,
  id: string,
  scope: SystemdCgroup | undefined,
): CgroupPlace {
  if (scope !== undefined) return { name: '', parent: '', path: scope.path, scopePrefix: '' };
  return family === 'crun' ? crunCgroupPlace(bundle.spec, id) : cgroupPlace(bundle.spec, id, false);
}

/** What is bound over masked directories, where images want that: crun's own, shared by all, or one in the state directory. */
export function emptyDirectoryOf(family: RuntimeFamily, request: Pick<ContainerRestore, 'root' | 'id'>): string {
  return family === 'crun'
    ? join(request.root, kEmptyDirectoryName)
    : join(request.root, request.id, kEmptyDirectoryName);
}

export interface PublishedContainer {
  readonly request: ContainerRestore;
  readonly bundle: Bundle;
  readonly version: BaseRuntimeVersion;
  readonly stateDirectory: string;
  readonly cgroupPaths: ReadonlyMap<string, string>;
  /** Within its hierarchy. */
  readonly cgroupPath: string;
  /** Name of the unit, under the systemd cgroup driver. */
  readonly scope: string | undefined;
  /** The container's own, as the kernel has it. */
  readonly seccompFilter: Uint8Array | undefined;
}

/** Thinks of everything that can be known before the tree is there; what is returned writes. */
export function prepareStateFiles(container: PublishedContainer): (parked: Parked) => void {
  const { bundle, version, stateDirectory } = container;
  const write = (name: string, text: string | Uint8Array, mode: number): void => {
    const path = join(stateDirectory, name);
    try {
      writeFileSync(`${path}.new`, text, { mode });
      renameSync(`${path}.new`, path);
    } catch (error) {
      throw fileError(`cannot write the state of container ${JSON.stringify(container.request.id)}`, path, error);
    }
  };
  if (version.family === 'runc') {
    const state = runcState(container);
    return (parked) => write('state.json', state(parked), 0o600);
  }
  return (parked) => {
    // The status last: where it is, crun takes the container for complete.
    write('config.json', bundle.text, 0o700);
    // Without it, "crun exec" starts programs that no filter holds back.
    if (container.seccompFilter !== undefined) write('seccomp.bpf', container.seccompFilter, 0o700);
    write('status', crunStatus(container, parked), 0o700);
  };
}

function runcState({ request, bundle, version, cgroupPaths }: PublishedContainer): (parked: Parked) => string {
  const config = toLibcontainerConfig({
    spec: bundle.spec,
    id: request.id,
    bundle: bundle.directory,
    systemdCgroup: request.systemdCgroup,
    noPivotRoot: request.noPivot,
    noNewKeyring: request.noNewKeyring,
    dialect: version.dialect,
    specVersion: version.specVersion,
  });
  const externalDescriptors = streamsOf(bundle);
  const kernelNamespaces = new Set(readdirSync('/proc/self/ns'));
  return ({ rootHostPid, rootStartTicks }) =>
    formatRuncState({
      id: request.id,
      initHostPid: rootHostPid,
      initStartTicks: rootStartTicks,
      created: new Date(),
      config,
      cgroupPaths,
      externalDescriptors,
      kernelNamespaces,
    });
}

function crunStatus({ request, bundle, cgroupPath, scope }: PublishedContainer, parked: Parked): string {
  return formatCrunStatus({
    initHostPid: parked.rootHostPid,
    initStartTicks: parked.rootStartTicks,
    created: new Date(),
    cgroupPath,
    scope,
    rootfs: bundle.spec.root.path,
    bundle: bundle.directory,
    owner: 'root',
    detached: request.detach,
    externalDescriptors: streamsOf(bundle),
  });
}

/** Streams of a container with a terminal are its own; runc notes them like this. */
function streamsOf(bundle: Bundle): string[] {
  return bundle.spec.process?.terminal === true ? [1, 2, 3].map(() => kNullDevice) : ownDescriptorLinks();
}
