// The devices that runc gives to every container besides those of the spec,
// and the cgroup rules that follow from both.
import type { RuntimeConfig } from './runtime-config.js';

export interface ContainerDevice {
  readonly path: string;
  readonly type: string; // 'c', 'b', 'p'
  readonly major: number;
  readonly minor: number;
  readonly permissions: string;
  readonly allow: boolean;
  readonly fileMode: number;
  readonly uid: number;
  readonly gid: number;
}

export interface DeviceRule {
  readonly allow: boolean;
  readonly type: string; // 'a', 'b', 'c'
  readonly major: number; // -1: any
  readonly minor: number; // -1: any
  readonly permissions: string;
}

const defaultNodes: readonly (readonly [path: string, major: number, minor: number])[] = [
  ['/dev/null', 1, 3],
  ['/dev/random', 1, 8],
  ['/dev/full', 1, 7],
  ['/dev/tty', 5, 0],
  ['/dev/zero', 1, 5],
  ['/dev/urandom', 1, 9],
];

/** Nodes in the container's /dev: the defaults that the spec does not define itself, then the spec's. */
export function containerDevices(spec: RuntimeConfig): ContainerDevice[] {
  const own = spec.linux?.devices ?? [];
  const taken = new Set(own.map((device) => device.path));
  const defaults = defaultNodes
    .filter(([path]) => !taken.has(path))
    .map(([path, major, minor]) => ({
      path,
      type: 'c',
      major,
      minor,
      permissions: 'rwm',
      allow: true,
      fileMode: 0o666,
      uid: 0,
      gid: 0,
    }));
  const ownDevices = own.map((device) => ({
    path: device.path,
    type: device.type === 'u' ? 'c' : device.type,
    major: device.major,
    minor: device.minor,
    permissions: '',
    allow: false,
    fileMode: device.fileMode === undefined ? 0o666 : device.fileMode & ~0o170000,
    uid: device.uid ?? 0,
    gid: device.gid ?? 0,
  }));
  return [...defaults, ...ownDevices];
}

/**
 * Rules of the container's cgroup, in order; a later rule overrides an earlier one.
 * `tun`: whether /dev/net/tun is allowed to all, as runc did until 1.2.
 */
export function containerDeviceRules(spec: RuntimeConfig, tun: boolean): DeviceRule[] {
  const rules: DeviceRule[] = (spec.linux?.resources?.devices ?? []).map((rule) => ({
    allow: rule.allow,
    type: rule.type === undefined || rule.type === '' ? 'a' : rule.type,
    major: rule.major ?? -1,
    minor: rule.minor ?? -1,
    permissions: rule.access,
  }));
  const taken = new Set((spec.linux?.devices ?? []).map((device) => device.path));
  const allow = (type: string, major: number, minor: number, permissions: string): void => {
    rules.push({ allow: true, type, major, minor, permissions });
  };
  // Making a node is harmless: opening it is what the rules decide.
  allow('c', -1, -1, 'm');
  allow('b', -1, -1, 'm');
  for (const [path, major, minor] of defaultNodes) {
    if (!taken.has(path)) allow('c', major, minor, 'rwm');
  }
  allow('c', 136, -1, 'rwm'); // pty slaves
  allow('c', 5, 2, 'rwm'); // /dev/ptmx
  if (tun) allow('c', 10, 200, 'rwm');
  return rules;
}
