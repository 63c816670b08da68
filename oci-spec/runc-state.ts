// runc's state.json, 1.1 to 1.4: what we read of it, and writing one for a
// container that we restored, so that runc's own verbs work on it.
import type { ContainerRecord } from './container-record.js';
import { FormatError, JsonReader, parseJson, stringifyJson } from './json.js';
import { namespaceTypeNames, type LibcontainerConfig } from './libcontainer-config.js';

/** Throws FormatError. */
export function parseRuncState(text: string): ContainerRecord {
  const document = new JsonReader(parseJson(text));
  const config = document.field('config');
  if (config.absent) throw new FormatError('config', 'is missing');
  const labels = config.field('labels').listOr((label) => label.string());
  const annotations: Record<string, string> = {};
  let bundle = '';
  for (const label of labels) {
    const equals = label.indexOf('=');
    if (equals < 0) continue;
    const key = label.slice(0, equals);
    if (key === 'bundle') bundle = label.slice(equals + 1);
    else annotations[key] = label.slice(equals + 1);
  }
  const namespaces = new Map(
    config
      .field('namespaces')
      .listOr((namespace) => [namespace.field('type').string(), namespace.field('path').stringOr('')] as const),
  );
  const cgroups = config.field('cgroups');
  const hooks = config.field('Hooks');
  return {
    id: document.field('id').string(),
    initHostPid: document.field('init_process_pid').integer(),
    initStartTicks: BigInt(document.field('init_process_start').wideOr(0)),
    created: document.field('created').stringOr(''),
    rootfs: config.field('rootfs').string(),
    bundle,
    annotations,
    ociVersion: config.field('version').stringOr(''),
    mounts: config.field('mounts').listOr((mount) => ({
      source: mount.field('source').stringOr(''),
      destination: mount.field('destination').string(),
      device: mount.field('device').stringOr(''),
      flags: mount.field('flags').integerOr(0),
    })),
    devicePaths: config.field('devices').listOr((device) => device.field('path').string()),
    maskPaths: config.field('mask_paths').listOr((path) => path.string()),
    namespaces,
    cgroupPaths: document.field('cgroup_paths').map((path) => path.string()),
    systemdCgroup: cgroups.absent ? false : cgroups.field('Systemd').booleanOr(false),
    noPivotRoot: config.field('no_pivot_root').booleanOr(false),
    noNewKeyring: config.field('no_new_keyring').booleanOr(false),
    externalDescriptors: document.field('external_descriptors').listOr((link) => link.string()),
    needsRuntimeToDelete:
      (!hooks.absent && hooks.field('poststop').listOr(() => true).length > 0) ||
      document.field('intel_rdt_path').stringOr('') !== '',
  };
}

export interface NewRuncState {
  readonly id: string;
  readonly initHostPid: number;
  readonly initStartTicks: bigint;
  readonly created: Date;
  readonly config: LibcontainerConfig;
  readonly cgroupPaths: ReadonlyMap<string, string>;
  readonly externalDescriptors: readonly string[];
  /** Namespace kinds that this kernel has, as named in /proc/self/ns: "time" and so on. */
  readonly kernelNamespaces: ReadonlySet<string>;
}

const namespaceFiles: readonly (readonly [type: string, file: string])[] = [
  ['NEWUSER', 'user'],
  ['NEWIPC', 'ipc'],
  ['NEWUTS', 'uts'],
  ['NEWNET', 'net'],
  ['NEWPID', 'pid'],
  ['NEWNS', 'mnt'],
  ['NEWCGROUP', 'cgroup'],
];

/** One line, no newline at its end, as runc writes it. */
export function formatRuncState(state: NewRuncState): string {
  const configured = (state.config['namespaces'] as readonly { type: string; path: string }[] | null) ?? [];
  const paths = new Map(
    namespaceFiles
      .filter(([, file]) => state.kernelNamespaces.has(file))
      .map(([type, file]) => [type, nsPath(state, file)]),
  );
  for (const { type, path } of configured) {
    const file =
      namespaceFiles.find(([name]) => name === type)?.[1] ?? (type === namespaceTypeNames.time ? 'time' : '');
    paths.set(type, path !== '' ? path : nsPath(state, file));
  }
  return stringifyJson({
    id: state.id,
    init_process_pid: state.initHostPid,
    init_process_start:
      state.initStartTicks <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(state.initStartTicks) : state.initStartTicks,
    created: state.created.toISOString().replace(/\.?0*Z$/, 'Z'),
    config: state.config,
    rootless: false,
    cgroup_paths: sorted(state.cgroupPaths),
    namespace_paths: sorted(paths),
    ...(state.externalDescriptors.length === 0 ? {} : { external_descriptors: state.externalDescriptors }),
    intel_rdt_path: '',
  });
}

function nsPath(state: NewRuncState, file: string): string {
  return `/proc/${state.initHostPid}/ns/${file}`;
}

function sorted(map: ReadonlyMap<string, string>): Record<string, string> {
  return Object.fromEntries([...map].sort(([one], [other]) => (one < other ? -1 : 1)));
}

/** runc's rule for container ids. */
export function isContainerId(id: string): boolean {
  return /^[A-Za-z0-9_+.-]+$/.test(id) && id !== '.' && id !== '..';
}
