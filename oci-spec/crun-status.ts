// crun's state directory: the file "status" and the copy of config.json beside
// it. What we read of them, and writing a status for a container that we
// restored, so that crun's own verbs work on it.
import type { ContainerRecord } from './container-record.js';
import { containerDevices } from './devices.js';
import { FormatError, JsonReader, parseJson } from './json.js';
import { namespaceTypeNames, type CgroupPlace } from './libcontainer-config.js';
import { isBindMount, parseMountOptions } from './mount-options.js';
import { isAbsolute, normalize } from './paths.js';
import type { RuntimeConfig } from './runtime-config.js';

/** Beside the state directories: what crun mounts over masked directories. */
export const kEmptyDirectoryName = '.empty-directory';

/**
 * Throws FormatError. `cgroupRoot` is where the one v2 hierarchy is mounted: crun notes paths in it.
 * What status does not say is in `spec`, the copy of config.json.
 */
export function parseCrunStatus(text: string, id: string, spec: RuntimeConfig, cgroupRoot: string): ContainerRecord {
  const status = new JsonReader(parseJson(text));
  const bundle = status.field('bundle').string();
  const rootfs = status.field('rootfs').string();
  const cgroup = normalize(`/${status.field('cgroup-path').stringOr('')}`);
  return {
    id,
    initHostPid: status.field('pid').integer(),
    initStartTicks: BigInt(status.field('process-start-time').wideOr(0)),
    created: status.field('created').stringOr(''),
    rootfs: isAbsolute(rootfs) ? rootfs : `${bundle}/${rootfs}`,
    bundle,
    annotations: spec.annotations,
    ociVersion: spec.ociVersion,
    mounts: spec.mounts.map(({ source, destination, type, options }) => ({
      source: isBindMount(options) && !isAbsolute(source) ? `${bundle}/${source}` : source,
      destination,
      device: isBindMount(options) ? 'bind' : type,
      flags: parseMountOptions(options).flags,
    })),
    devicePaths: containerDevices(spec).map(({ path }) => path),
    maskPaths: spec.linux?.maskedPaths ?? [],
    namespaces: new Map((spec.linux?.namespaces ?? []).map(({ type, path }) => [namespaceTypeNames[type], path])),
    // The root of the hierarchy is everybody's: such a container has no cgroup of its own.
    cgroupPaths: cgroup === '/' ? new Map() : new Map([['', `${cgroupRoot}${cgroup}`]]),
    systemdCgroup: status.field('systemd-cgroup').booleanOr(false),
    noPivotRoot: false,
    noNewKeyring: false,
    externalDescriptors: parseList(status.field('external_descriptors')),
    needsRuntimeToDelete: (spec.hooks.get('poststop') ?? []).length > 0,
  };
}

/** A list of strings, as JSON in a string. */
function parseList(field: JsonReader): string[] {
  const text = field.stringOr('');
  if (text === '') return [];
  try {
    return new JsonReader(parseJson(text)).listOr((link) => link.string());
  } catch (error) {
    if (error instanceof FormatError) throw new FormatError(field.path, `is no list: ${error.message}`);
    throw error;
  }
}

export interface NewCrunStatus {
  readonly initHostPid: number;
  readonly initStartTicks: bigint;
  readonly created: Date;
  /** Within the v2 hierarchy. */
  readonly cgroupPath: string;
  /** Name of the unit, under the systemd cgroup manager. */
  readonly scope: string | undefined;
  /** As config.json has it. */
  readonly rootfs: string;
  readonly bundle: string;
  readonly owner: string;
  readonly detached: boolean;
  readonly externalDescriptors: readonly string[];
}

/** As crun writes it: two spaces, slashes escaped, the list of descriptors as text. */
export function formatCrunStatus(status: NewCrunStatus): string {
  return pretty({
    pid: status.initHostPid,
    'process-start-time': Number(status.initStartTicks),
    'cgroup-path': status.cgroupPath,
    scope: status.scope ?? '',
    rootfs: status.rootfs,
    'systemd-cgroup': status.scope !== undefined,
    bundle: status.bundle,
    // Microseconds.
    created: status.created.toISOString().replace('Z', '000Z'),
    owner: status.owner,
    detached: status.detached,
    external_descriptors: pretty(status.externalDescriptors),
  });
}

function pretty(value: unknown): string {
  return JSON.stringify(value, undefined, 2).replaceAll('/', '\\/');
}

/** Where crun's cgroupfs manager puts a container: always below the root of the hierarchy, never beside the caller. */
export function crunCgroupPlace(spec: RuntimeConfig, id: string): CgroupPlace {
  const given = spec.linux?.cgroupsPath ?? '';
  return { name: '', parent: '', path: normalize(`/${given === '' ? id : given}`), scopePrefix: '' };
}
