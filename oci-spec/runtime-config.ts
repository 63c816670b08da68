// config.json of an OCI bundle: the parts that checkpoint and restore use, and
// those that the base runtime wants to see in its state file. Linux only.
import { FormatError, JsonReader, parseJson } from './json.js';

export interface RuntimeConfig {
  readonly ociVersion: string;
  readonly process?: SpecProcess;
  readonly root: { readonly path: string; readonly readonly: boolean };
  readonly hostname: string;
  readonly domainname: string;
  readonly mounts: readonly SpecMount[];
  readonly hooks: ReadonlyMap<HookName, readonly SpecHook[]>;
  readonly annotations: Readonly<Record<string, string>>;
  readonly linux?: SpecLinux;
}

export type HookName = 'prestart' | 'createRuntime' | 'createContainer' | 'startContainer' | 'poststart' | 'poststop';
export const hookNames: readonly HookName[] = [
  'prestart',
  'createRuntime',
  'createContainer',
  'startContainer',
  'poststart',
  'poststop',
];

export interface SpecHook {
  readonly path: string;
  readonly args: readonly string[] | undefined;
  readonly env: readonly string[] | undefined;
  readonly timeoutSeconds: number | undefined;
}

export interface SpecProcess {
  readonly terminal: boolean;
  readonly uid: number;
  readonly gid: number;
  readonly umask: number | undefined;
  readonly additionalGids: readonly number[];
  readonly args: readonly string[];
  readonly cwd: string;
  readonly capabilities: SpecCapabilities | undefined;
  readonly rlimits: readonly SpecRlimit[];
  readonly noNewPrivileges: boolean;
  readonly apparmorProfile: string;
  readonly selinuxLabel: string;
  readonly oomScoreAdj: number | undefined;
}

export interface SpecCapabilities {
  readonly bounding: readonly string[] | undefined;
  readonly effective: readonly string[] | undefined;
  readonly inheritable: readonly string[] | undefined;
  readonly permitted: readonly string[] | undefined;
  readonly ambient: readonly string[] | undefined;
}

export interface SpecRlimit {
  readonly type: string;
  readonly soft: number | bigint;
  readonly hard: number | bigint;
}

export interface SpecMount {
  readonly destination: string;
  readonly type: string;
  readonly source: string;
  readonly options: readonly string[];
}

export type NamespaceKind = 'pid' | 'network' | 'mount' | 'ipc' | 'uts' | 'user' | 'cgroup' | 'time';
const namespaceKinds: readonly string[] = ['pid', 'network', 'mount', 'ipc', 'uts', 'user', 'cgroup', 'time'];

export interface SpecNamespace {
  readonly type: NamespaceKind;
  /** "" if it is to be made anew. */
  readonly path: string;
}

export interface SpecIdMap {
  readonly containerId: number;
  readonly hostId: number;
  readonly size: number;
}

export interface SpecDevice {
  readonly path: string;
  readonly type: string;
  readonly major: number;
  readonly minor: number;
  readonly fileMode: number | undefined;
  readonly uid: number | undefined;
  readonly gid: number | undefined;
}

export interface SpecLinux {
  readonly namespaces: readonly SpecNamespace[];
  readonly uidMappings: readonly SpecIdMap[];
  readonly gidMappings: readonly SpecIdMap[];
  readonly devices: readonly SpecDevice[];
  readonly cgroupsPath: string;
  readonly resources: SpecResources | undefined;
  readonly rootfsPropagation: string;
  readonly maskedPaths: readonly string[] | undefined;
  readonly readonlyPaths: readonly string[] | undefined;
  readonly mountLabel: string;
  readonly sysctl: Readonly<Record<string, string>> | undefined;
  readonly seccomp: SpecSeccomp | undefined;
  readonly intelRdt:
    { readonly closId: string; readonly l3CacheSchema: string; readonly memBwSchema: string } | undefined;
}

export interface SpecDeviceRule {
  readonly allow: boolean;
  readonly type: string | undefined;
  readonly major: number | undefined;
  readonly minor: number | undefined;
  readonly access: string;
}

export interface SpecResources {
  readonly devices: readonly SpecDeviceRule[];
  readonly memory: {
    readonly limit?: number;
    readonly reservation?: number;
    readonly swap?: number;
    readonly swappiness?: number;
    readonly disableOomKiller?: boolean;
  };
  readonly cpu: {
    readonly shares?: number;
    readonly quota?: number;
    readonly period?: number;
    readonly realtimeRuntime?: number;
    readonly realtimePeriod?: number;
    readonly cpus: string;
    readonly mems: string;
  };
  readonly pidsLimit: number | undefined;
  readonly blockIo: SpecBlockIo;
  readonly hugepageLimits: readonly { readonly pageSize: string; readonly limit: number | bigint }[];
  readonly network: {
    readonly classId?: number;
    readonly priorities: readonly { readonly name: string; readonly priority: number }[];
  };
  readonly rdma: ReadonlyMap<string, { readonly hcaHandles?: number; readonly hcaObjects?: number }>;
  readonly unified: Readonly<Record<string, string>>;
}

export interface SpecBlockIo {
  readonly weight?: number;
  readonly leafWeight?: number;
  readonly weightDevice: readonly {
    readonly major: number;
    readonly minor: number;
    readonly weight?: number;
    readonly leafWeight?: number;
  }[];
  readonly throttleReadBps: readonly SpecThrottle[];
  readonly throttleWriteBps: readonly SpecThrottle[];
  readonly throttleReadIops: readonly SpecThrottle[];
  readonly throttleWriteIops: readonly SpecThrottle[];
}

export interface SpecThrottle {
  readonly major: number;
  readonly minor: number;
  readonly rate: number | bigint;
}

export interface SpecSeccomp {
  readonly defaultAction: string;
  readonly defaultErrnoRet: number | undefined;
  readonly architectures: readonly string[];
  readonly flags: readonly string[];
  readonly listenerPath: string;
  readonly listenerMetadata: string;
  readonly syscalls: readonly {
    readonly names: readonly string[];
    readonly action: string;
    readonly errnoRet: number | undefined;
    readonly args: readonly {
      readonly index: number;
      readonly value: number | bigint;
      readonly valueTwo: number | bigint;
      readonly op: string;
    }[];
  }[];
}

/** Throws FormatError naming the field. */
export function parseRuntimeConfig(text: string): RuntimeConfig {
  const document = new JsonReader(parseJson(text));
  const root = document.field('root');
  if (root.absent) throw new FormatError('root', 'is missing');
  const process = document.field('process');
  const linux = document.field('linux');
  return {
    ociVersion: document.field('ociVersion').stringOr(''),
    ...(process.absent ? {} : { process: readProcess(process) }),
    root: { path: root.field('path').string(), readonly: root.field('readonly').booleanOr(false) },
    hostname: document.field('hostname').stringOr(''),
    domainname: document.field('domainname').stringOr(''),
    mounts: document.field('mounts').listOr(readMount),
    hooks: readHooks(document.field('hooks')),
    annotations: document.field('annotations').stringMap(),
    ...(linux.absent ? {} : { linux: readLinux(linux) }),
  };
}

function readProcess(process: JsonReader): SpecProcess {
  const user = process.field('user');
  const capabilities = process.field('capabilities');
  const ofUser = (name: string): number => (user.absent ? 0 : user.field(name).integerOr(0));
  return {
    terminal: process.field('terminal').booleanOr(false),
    uid: ofUser('uid'),
    gid: ofUser('gid'),
    umask: user.absent ? undefined : user.field('umask').integerOr(undefined),
    additionalGids: user.absent ? [] : user.field('additionalGids').listOr((gid) => gid.integer()),
    args: process.field('args').listOr((word) => word.string()),
    cwd: process.field('cwd').stringOr('/'),
    capabilities: capabilities.absent
      ? undefined
      : {
          bounding: strings(capabilities.field('bounding')),
          effective: strings(capabilities.field('effective')),
          inheritable: strings(capabilities.field('inheritable')),
          permitted: strings(capabilities.field('permitted')),
          ambient: strings(capabilities.field('ambient')),
        },
    rlimits: process.field('rlimits').listOr((limit) => ({
      type: limit.field('type').string(),
      soft: limit.field('soft').wideOr(0),
      hard: limit.field('hard').wideOr(0),
    })),
    noNewPrivileges: process.field('noNewPrivileges').booleanOr(false),
    apparmorProfile: process.field('apparmorProfile').stringOr(''),
    selinuxLabel: process.field('selinuxLabel').stringOr(''),
    oomScoreAdj: process.field('oomScoreAdj').integerOr(undefined),
  };
}

function readMount(mount: JsonReader): SpecMount {
  return {
    destination: mount.field('destination').string(),
    type: mount.field('type').stringOr(''),
    source: mount.field('source').stringOr(''),
    options: mount.field('options').listOr((option) => option.string()),
  };
}

function readHooks(hooks: JsonReader): Map<HookName, SpecHook[]> {
  const result = new Map<HookName, SpecHook[]>();
  if (hooks.absent) return result;
  for (const name of hookNames) {
    const list = hooks.field(name).listOr((hook) => ({
      path: hook.field('path').string(),
      args: strings(hook.field('args')),
      env: strings(hook.field('env')),
      timeoutSeconds: hook.field('timeout').integerOr(undefined),
    }));
    if (list.length > 0) result.set(name, list);
  }
  return result;
}

function readLinux(linux: JsonReader): SpecLinux {
  const rdt = linux.field('intelRdt');
  const sysctl = linux.field('sysctl');
  const idMap = (map: JsonReader): SpecIdMap => ({
    containerId: map.field('containerID').integerOr(0),
    hostId: map.field('hostID').integerOr(0),
    size: map.field('size').integerOr(0),
  });
  return {
    namespaces: linux.field('namespaces').listOr((namespace) => {
      const type = namespace.field('type').string();
      if (!namespaceKinds.includes(type)) throw new FormatError(namespace.path, `names no namespace kind: "${type}"`);
      return { type: type as NamespaceKind, path: namespace.field('path').stringOr('') };
    }),
    uidMappings: linux.field('uidMappings').listOr(idMap),
    gidMappings: linux.field('gidMappings').listOr(idMap),
    devices: linux.field('devices').listOr((device) => ({
      path: device.field('path').string(),
      type: device.field('type').string(),
      major: device.field('major').integerOr(0),
      minor: device.field('minor').integerOr(0),
      fileMode: device.field('fileMode').integerOr(undefined),
      uid: device.field('uid').integerOr(undefined),
      gid: device.field('gid').integerOr(undefined),
    })),
    cgroupsPath: linux.field('cgroupsPath').stringOr(''),
    resources: linux.field('resources').absent ? undefined : readResources(linux.field('resources')),
    rootfsPropagation: linux.field('rootfsPropagation').stringOr(''),
    maskedPaths: strings(linux.field('maskedPaths')),
    readonlyPaths: strings(linux.field('readonlyPaths')),
    mountLabel: linux.field('mountLabel').stringOr(''),
    sysctl: sysctl.absent ? undefined : sysctl.stringMap(),
    seccomp: linux.field('seccomp').absent ? undefined : readSeccomp(linux.field('seccomp')),
    intelRdt: rdt.absent
      ? undefined
      : {
          closId: rdt.field('closID').stringOr(''),
          l3CacheSchema: rdt.field('l3CacheSchema').stringOr(''),
          memBwSchema: rdt.field('memBwSchema').stringOr(''),
        },
  };
}

function readResources(resources: JsonReader): SpecResources {
  const group = (name: string): JsonReader =>
    resources.field(name).absent ? new JsonReader({}, name) : resources.field(name);
  const memory = group('memory');
  const cpu = group('cpu');
  const blockIo = group('blockIO');
  const network = group('network');
  const throttle = (name: string): SpecThrottle[] =>
    blockIo.field(name).listOr((device) => ({
      major: device.field('major').integer(),
      minor: device.field('minor').integer(),
      rate: device.field('rate').wideOr(0),
    }));
  const disableOomKiller = memory.field('disableOOMKiller').booleanOr(undefined);
  return {
    devices: resources.field('devices').listOr((rule) => ({
      allow: rule.field('allow').booleanOr(false),
      type: rule.field('type').stringOr(undefined),
      major: rule.field('major').integerOr(undefined),
      minor: rule.field('minor').integerOr(undefined),
      access: rule.field('access').stringOr(''),
    })),
    memory: {
      ...present(memory, { limit: 'limit', reservation: 'reservation', swap: 'swap', swappiness: 'swappiness' }),
      ...(disableOomKiller === undefined ? {} : { disableOomKiller }),
    },
    cpu: {
      ...present(cpu, {
        shares: 'shares',
        quota: 'quota',
        period: 'period',
        realtimeRuntime: 'realtimeRuntime',
        realtimePeriod: 'realtimePeriod',
      }),
      cpus: cpu.field('cpus').stringOr(''),
      mems: cpu.field('mems').stringOr(''),
    },
    pidsLimit: group('pids').field('limit').integerOr(undefined),
    blockIo: {
      ...present(blockIo, { weight: 'weight', leafWeight: 'leafWeight' }),
      weightDevice: blockIo.field('weightDevice').listOr((device) => ({
        major: device.field('major').integer(),
        minor: device.field('minor').integer(),
        ...present(device, { weight: 'weight', leafWeight: 'leafWeight' }),
      })),
      throttleReadBps: throttle('throttleReadBpsDevice'),
      throttleWriteBps: throttle('throttleWriteBpsDevice'),
      throttleReadIops: throttle('throttleReadIOPSDevice'),
      throttleWriteIops: throttle('throttleWriteIOPSDevice'),
    },
    hugepageLimits: resources.field('hugepageLimits').listOr((limit) => ({
      pageSize: limit.field('pageSize').string(),
      limit: limit.field('limit').wide(),
    })),
    network: {
      ...present(network, { classId: 'classID' }),
      priorities: network.field('priorities').listOr((priority) => ({
        name: priority.field('name').string(),
        priority: priority.field('priority').integer(),
      })),
    },
    rdma: resources
      .field('rdma')
      .map((limit) => present(limit, { hcaHandles: 'hcaHandles', hcaObjects: 'hcaObjects' })),
    unified: resources.field('unified').stringMap(),
  };
}

function readSeccomp(seccomp: JsonReader): SpecSeccomp {
  return {
    defaultAction: seccomp.field('defaultAction').stringOr(''),
    defaultErrnoRet: seccomp.field('defaultErrnoRet').integerOr(undefined),
    architectures: strings(seccomp.field('architectures')) ?? [],
    flags: strings(seccomp.field('flags')) ?? [],
    listenerPath: seccomp.field('listenerPath').stringOr(''),
    listenerMetadata: seccomp.field('listenerMetadata').stringOr(''),
    syscalls: seccomp.field('syscalls').listOr((call) => ({
      names: strings(call.field('names')) ?? [],
      action: call.field('action').string(),
      errnoRet: call.field('errnoRet').integerOr(undefined),
      args: call.field('args').listOr((argument) => ({
        index: argument.field('index').integer(),
        value: argument.field('value').wideOr(0),
        valueTwo: argument.field('valueTwo').wideOr(0),
        op: argument.field('op').string(),
      })),
    })),
  };
}

/** The numeric fields that are there, under our names. */
function present<Name extends string>(group: JsonReader, names: Record<Name, string>): { [Key in Name]?: number } {
  const result: { [Key in Name]?: number } = {};
  for (const [ours, theirs] of Object.entries(names) as [Name, string][]) {
    const field = group.field(theirs);
    if (!field.absent) result[ours] = field.integer();
  }
  return result;
}

/** Absent stays undefined: Go writes null for a nil list and [] for an empty one. */
function strings(list: JsonReader): string[] | undefined {
  return list.absent ? undefined : list.list().map((item) => item.string());
}
