// linux.resources of a spec as properties of a scope, v1 and v2. The cgroup's
// files get the same values (cgroup-limits.ts); systemd has to know them, too,
// or it writes its own at the next daemon-reload. Pure.
import type { DbusValue } from '../../oci-spec/dbus-message.js';
import { FormatError } from '../../oci-spec/json.js';
import type { SpecResources } from '../../oci-spec/runtime-config.js';
import type { UnitProperty } from '../../oci-spec/systemd-annotations.js';
import type { DevicePolicy } from './device-program.js';
import { v2Writes } from './cgroup-limits.js';

/** Of the kernel's periods. */
const kDefaultCpuPeriodUs = 100_000;
/** systemd rounds to 1 % of a processor; down would be less than was asked for. */
const kQuotaGrainUs = 10_000n;
const kInfinity = 0xffff_ffff_ffff_ffffn;
const kMaximalCpu = 8191;

export interface ResourceProperties {
  readonly resources: SpecResources | undefined;
  readonly cgroupVersion: 1 | 2;
  /** 252. Older ones refuse what they do not know. */
  readonly systemdVersion: number;
}

export function resourceProperties({ resources, cgroupVersion, systemdVersion }: ResourceProperties): UnitProperty[] {
  const properties: UnitProperty[] = ['CPU', 'Memory', 'Tasks', cgroupVersion === 2 ? 'IO' : 'BlockIO'].map((name) => [
    `${name}Accounting`,
    { signature: 'b', value: true },
  ]);
  if (resources === undefined) return properties;
  const add = (name: string, value: number | bigint | undefined): void => {
    if (value === undefined || Number(value) === 0) return;
    properties.push([name, { signature: 't', value: Number(value) < 0 ? kInfinity : BigInt(value) }]);
  };
  const addSet = (name: string, list: string | undefined): void => {
    if (list === undefined || list === '' || systemdVersion < 244) return;
    properties.push([name, { signature: 'ay', value: bitsOf(list, name) }]);
  };
  const { memory, cpu, blockIo } = resources;
  if (cgroupVersion === 2) {
    // In the form that v2's files have, whether from "unified" or from the other fields; the last one counts.
    const files = new Map(v2Writes(resources, kAllControllers).map(({ file, text }) => [file, text]));
    const number = (file: string): bigint | undefined => {
      const text = files.get(file);
      return text === 'max' ? -1n : text !== undefined && /^[0-9]+$/.test(text) ? BigInt(text) : undefined;
    };
    for (const [file, name] of v2Properties) add(name, number(file));
    const swap = files.get('memory.swap.max');
    // None at all is a limit, too.
    if (swap === '0') properties.push(['MemorySwapMax', { signature: 't', value: 0n }]);
    addSet('AllowedCPUs', files.get('cpuset.cpus'));
    addSet('AllowedMemoryNodes', files.get('cpuset.mems'));
    const [quota, period] = (files.get('cpu.max') ?? '').split(' ');
    if (quota !== undefined && quota !== '') addQuota(quota === 'max' ? -1 : Number(quota), Number(period ?? 0));
  } else {
    add('MemoryLimit', memory.limit);
    add('CPUShares', cpu.shares);
    add('BlockIOWeight', blockIo.weight);
    add('TasksMax', resources.pidsLimit);
    addQuota(cpu.quota ?? 0, cpu.period ?? 0);
  }
  return properties;

  function addQuota(quotaUs: number, periodUs: number): void {
    if (quotaUs === 0 && periodUs === 0) return;
    if (periodUs !== 0 && systemdVersion >= 242) add('CPUQuotaPeriodUSec', periodUs);
    const perSecond =
      (BigInt(Math.max(quotaUs, 0)) * 1_000_000n) / BigInt(periodUs === 0 ? kDefaultCpuPeriodUs : periodUs);
    const rounded = ((perSecond + kQuotaGrainUs - 1n) / kQuotaGrainUs) * kQuotaGrainUs;
    add('CPUQuotaPerSecUSec', quotaUs > 0 ? rounded : -1);
  }
}

const kAllControllers = ['cpu', 'cpuset', 'hugetlb', 'io', 'memory', 'misc', 'pids', 'rdma'];

const v2Properties: readonly (readonly [file: string, property: string])[] = [
  ['memory.min', 'MemoryMin'],
  ['memory.low', 'MemoryLow'],
  ['memory.high', 'MemoryHigh'],
  ['memory.max', 'MemoryMax'],
  ['memory.swap.max', 'MemorySwapMax'],
  ['pids.max', 'TasksMax'],
  ['cpu.weight', 'CPUWeight'],
];

/** `devices`: the text of /proc/devices. */
export function deviceProperties(policy: DevicePolicy, devices: string): UnitProperty[] {
  const allowed: DbusValue[] = [];
  // systemd knows no exceptions from allowing; then the rules are in the cgroup's files or program alone.
  if (!policy.allowByDefault) {
    for (const { type, major, minor, permissions } of policy.exceptions) {
      const path = devicePath(type, major, minor, devices);
      if (path !== undefined) allowed.push([path, permissions]);
    }
  }
  return [
    ['DevicePolicy', { signature: 's', value: policy.allowByDefault ? 'auto' : 'strict' }],
    ['DeviceAllow', { signature: 'a(ss)', value: allowed }],
  ];
}

/** undefined: systemd has no words for it, and will not allow it. */
function devicePath(type: string, major: number, minor: number, devices: string): string | undefined {
  const kind = type === 'b' ? 'block' : 'char';
  if (major < 0) return minor < 0 ? `${kind}-*` : undefined;
  if (minor >= 0) return `/dev/${kind}/${major}:${minor}`;
  const [characters, blocks = ''] = devices.split('Block devices:');
  const group = new RegExp(`^ *${major} (\\S+)`, 'm').exec(type === 'b' ? blocks : characters!)?.[1];
  return group === undefined ? undefined : `${kind}-${group}`;
}

/** "0-2,8" as bits, the lowest first. Throws FormatError. */
function bitsOf(list: string, name: string): number[] {
  const bytes: number[] = [];
  for (const range of list.split(',')) {
    const [, first, last] = /^\s*([0-9]+)(?:-([0-9]+))?\s*$/.exec(range) ?? [];
    const end = Number(last ?? first);
    if (first === undefined || Number(first) > end || end > kMaximalCpu)
      throw new FormatError('linux.resources', `has no list of numbers for ${name}: "${list}"`);
    for (let bit = Number(first); bit <= end; bit++) {
      while (bytes.length <= bit >> 3) bytes.push(0);
      bytes[bit >> 3]! |= 1 << (bit & 7);
    }
  }
  return bytes;
}
