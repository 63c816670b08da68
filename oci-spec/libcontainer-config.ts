// OCI spec to the `config` of runc's state.json, as runc itself converts it
// when it creates a container: the base runtime's exec, update, events and
// delete read nothing else. Keys stand in the order in which runc writes them.
import { containerDeviceRules, containerDevices } from './devices.js';
import { FormatError } from './json.js';
import { MS_RDONLY, parseMountOptions, propagationFlags, MS_BIND } from './mount-options.js';
import { isAbsolute, join, normalize } from './paths.js';
import {
  hookNames,
  type NamespaceKind,
  type RuntimeConfig,
  type SpecIdMap,
  type SpecResources,
  type SpecSeccomp,
} from './runtime-config.js';

/** runc 1.1 writes every key and knows fewer; 1.2 and later read both and know more. */
export type RuncDialect = '1.1' | '1.2';

export interface ConversionRequest {
  readonly spec: RuntimeConfig;
  readonly id: string;
  /** Absolute. */
  readonly bundle: string;
  readonly systemdCgroup: boolean;
  readonly noPivotRoot: boolean;
  readonly noNewKeyring: boolean;
  readonly dialect: RuncDialect;
  /** The spec version that the base runtime claims to implement. */
  readonly specVersion: string;
}

export const namespaceTypeNames: Readonly<Record<NamespaceKind, string>> = {
  pid: 'NEWPID',
  network: 'NEWNET',
  mount: 'NEWNS',
  ipc: 'NEWIPC',
  uts: 'NEWUTS',
  user: 'NEWUSER',
  cgroup: 'NEWCGROUP',
  time: 'NEWTIME',
};

export type LibcontainerConfig = Record<string, unknown>;

/** Throws FormatError when the spec asks for what runc would refuse. */
export function toLibcontainerConfig(request: ConversionRequest): LibcontainerConfig {
  const { spec, bundle } = request;
  const linux = spec.linux;
  const process = spec.process;
  const namespaces = (linux?.namespaces ?? []).map(({ type, path }) => ({ type: namespaceTypeNames[type], path }));
  const ownUserNamespace = namespaces.some(({ type }) => type === 'NEWUSER');
  const ownNet = namespaces.some(({ type, path }) => type === 'NEWNET' && path === '');
  const uidMappings = ownUserNamespace ? (linux?.uidMappings ?? []) : [];
  const gidMappings = ownUserNamespace ? (linux?.gidMappings ?? []) : [];
  const mounts = spec.mounts.map((mount) => convertMount(mount, bundle));
  const capabilities = process?.capabilities;

  return {
    no_pivot_root: request.noPivotRoot,
    parent_death_signal: 0,
    rootfs: isAbsolute(spec.root.path) ? spec.root.path : join(bundle, spec.root.path),
    umask: process?.umask ?? null,
    readonlyfs: spec.root.readonly,
    rootPropagation: rootPropagation(linux?.rootfsPropagation ?? ''),
    mounts: mounts.length === 0 ? null : mounts,
    devices: containerDevices(spec).map((device) => ({
      type: device.type.charCodeAt(0),
      major: device.major,
      minor: device.minor,
      permissions: device.permissions,
      allow: device.allow,
      path: device.path,
      file_mode: device.fileMode,
      uid: ownUserNamespace ? hostIdOfRoot(uidMappings) : device.uid,
      gid: ownUserNamespace ? hostIdOfRoot(gidMappings) : device.gid,
    })),
    mount_label: linux?.mountLabel ?? '',
    hostname: spec.hostname,
    ...(spec.domainname !== '' && request.dialect !== '1.1' ? { domainname: spec.domainname } : {}),
    namespaces: namespaces.length === 0 ? null : namespaces,
    capabilities:
      capabilities === undefined
        ? null
        : {
            Bounding: capabilities.bounding ?? null,
            Effective: capabilities.effective ?? null,
            Inheritable: capabilities.inheritable ?? null,
            Permitted: capabilities.permitted ?? null,
            Ambient: capabilities.ambient ?? null,
          },
    networks: ownNet ? [loopback()] : null,
    routes: null,
    cgroups: convertCgroups(request, mounts),
    ...(process !== undefined && process.selinuxLabel !== '' ? { process_label: process.selinuxLabel } : {}),
    ...(process?.oomScoreAdj === undefined ? {} : { oom_score_adj: process.oomScoreAdj }),
    uid_mappings: convertIdMaps(uidMappings),
    gid_mappings: convertIdMaps(gidMappings),
    mask_paths: linux?.maskedPaths ?? null,
    readonly_paths: linux?.readonlyPaths ?? null,
    sysctl: linux?.sysctl ?? null,
    seccomp: linux?.seccomp === undefined ? null : convertSeccomp(linux.seccomp, request.dialect),
    ...(process?.noNewPrivileges === true ? { no_new_privileges: true } : {}),
    Hooks: convertHooks(spec),
    version: request.specVersion,
    labels: [...Object.entries(spec.annotations).map(([key, value]) => `${key}=${value}`), `bundle=${bundle}`],
    no_new_keyring: request.noNewKeyring,
    ...(linux?.intelRdt === undefined
      ? {}
      : {
          intel_rdt: {
            ...(linux.intelRdt.closId === '' ? {} : { closID: linux.intelRdt.closId }),
            ...(linux.intelRdt.l3CacheSchema === '' ? {} : { l3_cache_schema: linux.intelRdt.l3CacheSchema }),
            ...(linux.intelRdt.memBwSchema === '' ? {} : { memBwSchema: linux.intelRdt.memBwSchema }),
          },
        }),
  };
}

interface LibcontainerMount {
  readonly source: string;
  readonly destination: string;
  readonly flags: number;
}

function convertMount(
  mount: RuntimeConfig['mounts'][number],
  bundle: string,
): LibcontainerMount & Record<string, unknown> {
  const options = parseMountOptions(mount.options);
  const bind = (options.flags & MS_BIND) !== 0;
  return {
    source: bind && !isAbsolute(mount.source) ? join(bundle, mount.source) : mount.source,
    destination: mount.destination,
    device: bind ? 'bind' : mount.type,
    flags: options.flags,
    propagation_flags: options.propagation.length === 0 ? null : options.propagation,
    data: options.data,
    relabel: '',
    rec_attr:
      options.recursiveSet === 0 && options.recursiveClear === 0
        ? null
        : { Attr_set: options.recursiveSet, Attr_clr: options.recursiveClear, Propagation: 0, Userns_fd: 0 },
    extensions: options.copyUp ? 1 : 0,
    premount_cmds: null,
    postmount_cmds: null,
  };
}

function rootPropagation(name: string): number {
  if (name === '') return 0;
  const flags = propagationFlags.get(name);
  if (flags === undefined) throw new FormatError('linux.rootfsPropagation', `names no propagation: "${name}"`);
  return flags;
}

function hostIdOfRoot(maps: readonly SpecIdMap[]): number {
  const map = maps.find(({ containerId, size }) => containerId === 0 && size > 0);
  return map?.hostId ?? 0;
}

function convertIdMaps(maps: readonly SpecIdMap[]): unknown {
  return maps.length === 0
    ? null
    : maps.map((map) => ({ container_id: map.containerId, host_id: map.hostId, size: map.size }));
}

function loopback(): Record<string, unknown> {
  return {
    type: 'loopback',
    name: '',
    bridge: '',
    mac_address: '',
    address: '',
    gateway: '',
    ipv6_address: '',
    ipv6_gateway: '',
    mtu: 0,
    txqueuelen: 0,
    host_interface_name: '',
    hairpin_mode: false,
  };
}

function convertHooks(spec: RuntimeConfig): Record<string, unknown> {
  const result: Record<string, unknown> = {};
  for (const name of [...hookNames].sort()) {
    const hooks = spec.hooks.get(name);
    result[name] =
      hooks === undefined
        ? null
        : hooks.map((hook) => ({
            path: hook.path,
            args: hook.args ?? null,
            env: hook.env ?? null,
            dir: '',
            timeout: hook.timeoutSeconds === undefined ? null : hook.timeoutSeconds * 1_000_000_000,
          }));
  }
  return result;
}

/** The systemd driver's "slice:prefix:name", or a path for the cgroupfs driver. */
export interface CgroupPlace {
  readonly name: string;
  readonly parent: string;
  readonly path: string;
  readonly scopePrefix: string;
}

export function cgroupPlace(spec: RuntimeConfig, id: string, systemdCgroup: boolean): CgroupPlace {
  const given = spec.linux?.cgroupsPath ?? '';
  if (systemdCgroup) {
    if (given === '') return { name: id, parent: '', path: '', scopePrefix: 'runc' };
    const parts = given.split(':');
    if (parts.length !== 3)
      throw new FormatError('linux.cgroupsPath', `must be "slice:prefix:name" for systemd cgroups, is "${given}"`);
    return { name: parts[2]!, parent: parts[0]!, path: '', scopePrefix: parts[1]! };
  }
  if (given === '') return { name: id, parent: '', path: '', scopePrefix: '' };
  return { name: '', parent: '', path: cleanCgroupPath(given), scopePrefix: '' };
}

/** Lexical, and a relative path cannot climb above its start. */
function cleanCgroupPath(path: string): string {
  if (isAbsolute(path)) return normalize(path);
  return normalize(`/${path}`).slice(1);
}

function convertCgroups(request: ConversionRequest, mounts: readonly LibcontainerMount[]): Record<string, unknown> {
  const { spec } = request;
  const place = cgroupPlace(spec, request.id, request.systemdCgroup);
  const ownerUid = cgroupOwner(spec, mounts);
  const resources = spec.linux?.resources;
  const pidsLimit = resources?.pidsLimit ?? 0;
  return {
    ...(place.name === '' ? {} : { name: place.name }),
    ...(place.parent === '' ? {} : { parent: place.parent }),
    path: place.path,
    scope_prefix: place.scopePrefix,
    ...(ownerUid === undefined ? {} : { owner_uid: ownerUid }),
    devices: containerDeviceRules(spec, request.dialect === '1.1').map((rule) => ({
      type: rule.type.charCodeAt(0),
      major: rule.major,
      minor: rule.minor,
      permissions: rule.permissions,
      allow: rule.allow,
    })),
    ...convertMemoryAndCpu(resources),
    // A pointer since 1.2, where 0 is a limit of its own.
    ...(request.dialect !== '1.1' && pidsLimit === 0 ? {} : { pids_limit: pidsLimit }),
    ...convertBlockIo(resources),
    freezer: '',
    hugetlb_limit: listOrNull(resources?.hugepageLimits.map(({ pageSize, limit }) => ({ page_size: pageSize, limit }))),
    oom_kill_disable: resources?.memory.disableOomKiller ?? false,
    memory_swappiness: resources?.memory.swappiness ?? null,
    net_prio_ifpriomap: listOrNull(
      resources?.network.priorities.map(({ name, priority }) => ({ interface: name, priority })),
    ),
    net_cls_classid_u: resources?.network.classId ?? 0,
    rdma: convertRdma(resources),
    cpu_weight: cpuSharesToWeight(resources?.cpu.shares ?? 0),
    unified:
      resources === undefined || Object.keys(resources.unified).length === 0 ? null : sortedObject(resources.unified),
    Systemd: request.systemdCgroup,
    Rootless: false,
  };
}

function convertMemoryAndCpu(resources: SpecResources | undefined): Record<string, unknown> {
  const memory = resources?.memory;
  const cpu = resources?.cpu;
  return {
    memory: memory?.limit ?? 0,
    memory_reservation: memory?.reservation ?? 0,
    memory_swap: memory?.swap ?? 0,
    cpu_shares: cpu?.shares ?? 0,
    cpu_quota: cpu?.quota ?? 0,
    cpu_period: cpu?.period ?? 0,
    cpu_rt_quota: cpu?.realtimeRuntime ?? 0,
    cpu_rt_period: cpu?.realtimePeriod ?? 0,
    cpuset_cpus: cpu?.cpus ?? '',
    cpuset_mems: cpu?.mems ?? '',
  };
}

function convertBlockIo(resources: SpecResources | undefined): Record<string, unknown> {
  const blockIo = resources?.blockIo;
  const throttle = (devices: SpecResources['blockIo']['throttleReadBps'] | undefined): unknown =>
    listOrNull(devices?.map(({ major, minor, rate }) => ({ major, minor, rate })));
  return {
    blkio_weight: blockIo?.weight ?? 0,
    blkio_leaf_weight: blockIo?.leafWeight ?? 0,
    blkio_weight_device: listOrNull(
      blockIo?.weightDevice.map(({ major, minor, weight, leafWeight }) => ({
        major,
        minor,
        weight: weight ?? 0,
        leafWeight: leafWeight ?? 0,
      })),
    ),
    blkio_throttle_read_bps_device: throttle(blockIo?.throttleReadBps),
    blkio_throttle_write_bps_device: throttle(blockIo?.throttleWriteBps),
    blkio_throttle_read_iops_device: throttle(blockIo?.throttleReadIops),
    blkio_throttle_write_iops_device: throttle(blockIo?.throttleWriteIops),
  };
}

function convertRdma(resources: SpecResources | undefined): unknown {
  if (resources === undefined || resources.rdma.size === 0) return null;
  const result: Record<string, unknown> = {};
  for (const [device, limit] of [...resources.rdma].sort(([one], [other]) => (one < other ? -1 : 1))) {
    result[device] = {
      ...(limit.hcaHandles === undefined ? {} : { hca_handles: limit.hcaHandles }),
      ...(limit.hcaObjects === undefined ? {} : { hca_objects: limit.hcaObjects }),
    };
  }
  return result;
}

/** cpu.shares [2, 262144] onto cpu.weight [1, 10000], as all runtimes do. */
export function cpuSharesToWeight(shares: number): number {
  return shares === 0 ? 0 : 1 + Math.floor(((shares - 2) * 9999) / 262142);
}

/** With an own cgroup namespace and a writable cgroup mount, the container's user owns the cgroup. */
export function cgroupOwner(spec: RuntimeConfig, mounts: readonly LibcontainerMount[]): number | undefined {
  const own = spec.linux?.namespaces.some(({ type, path }) => type === 'cgroup' && path === '') ?? false;
  const writable = mounts.some(
    ({ source, destination, flags }) =>
      source === 'cgroup' && normalize(destination) === '/sys/fs/cgroup' && (flags & MS_RDONLY) === 0,
  );
  if (!own || !writable) return undefined;
  const uid = spec.process?.uid ?? 0;
  if (!(spec.linux?.namespaces.some(({ type }) => type === 'user') ?? false)) return uid;
  const map = spec.linux?.uidMappings.find(({ containerId, size }) => uid >= containerId && uid < containerId + size);
  return map === undefined ? undefined : map.hostId + (uid - map.containerId);
}

const seccompActions: ReadonlyMap<string, number> = new Map(
  ['KILL', 'ERRNO', 'TRAP', 'ALLOW', 'TRACE', 'LOG', 'NOTIFY', 'KILL_THREAD', 'KILL_PROCESS'].map((name, index) => [
    `SCMP_ACT_${name}`,
    index + 1,
  ]),
);
const seccompOperators: ReadonlyMap<string, number> = new Map(
  ['EQ', 'NE', 'GT', 'GE', 'LT', 'LE', 'MASKED_EQ'].map((name, index) => [`SCMP_CMP_${name}`, index + 1]),
);

function seccompArchitecture(name: string): string {
  if (!/^SCMP_ARCH_[A-Z0-9_]+$/.test(name))
    throw new FormatError('linux.seccomp.architectures', `names no architecture: "${name}"`);
  const short = name.slice('SCMP_ARCH_'.length);
  return short === 'X86_64' ? 'amd64' : short === 'AARCH64' ? 'arm64' : short.toLowerCase();
}

function convertSeccomp(seccomp: SpecSeccomp, dialect: RuncDialect): unknown {
  if (seccomp.defaultAction === '' && seccomp.syscalls.length === 0) return null;
  const action = (name: string): number => lookUp(seccompActions, name, 'linux.seccomp', 'action');
  return {
    default_action: action(seccomp.defaultAction),
    architectures: listOrNull(seccomp.architectures.map(seccompArchitecture)),
    ...(dialect === '1.1' ? {} : { flags: listOrNull([...seccomp.flags]) }),
    syscalls: seccomp.syscalls.flatMap((call) =>
      call.names.map((name) => ({
        name,
        action: action(call.action),
        errnoRet: call.errnoRet ?? null,
        args: call.args.map((argument) => ({
          index: argument.index,
          value: argument.value,
          value_two: argument.valueTwo,
          op: lookUp(seccompOperators, argument.op, 'linux.seccomp.syscalls', 'operator'),
        })),
      })),
    ),
    default_errno_ret: seccomp.defaultErrnoRet ?? null,
    ...(seccomp.listenerPath === '' ? {} : { listener_path: seccomp.listenerPath }),
    ...(seccomp.listenerMetadata === '' ? {} : { listener_metadata: seccomp.listenerMetadata }),
  };
}

function lookUp(table: ReadonlyMap<string, number>, name: string, where: string, what: string): number {
  const value = table.get(name);
  if (value === undefined) throw new FormatError(where, `names no ${what}: "${name}"`);
  return value;
}

function listOrNull<T>(list: readonly T[] | undefined): readonly T[] | null {
  return list === undefined || list.length === 0 ? null : list;
}

function sortedObject(object: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(Object.entries(object).sort(([one], [other]) => (one < other ? -1 : 1)));
}
