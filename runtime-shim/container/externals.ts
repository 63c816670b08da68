// What a container has from outside: bind mounts, masked files, cgroup mounts,
// standard streams, joined namespaces. The same list is made from runc's state
// when checkpointing and from the spec when restoring, under the same keys, so
// that images made through CRIU's clients fit as well.
import { closeSync, existsSync, openSync, readlinkSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { nativeBinding } from '../../nativecore/index.js';
import type { ContainerRecord } from '../../oci-spec/container-record.js';
import { kEmptyDirectoryName } from '../../oci-spec/crun-status.js';
import { containerDevices } from '../../oci-spec/devices.js';
import { isBindMount } from '../../oci-spec/mount-options.js';
import { isAbsolute, normalize } from '../../oci-spec/paths.js';

import type { NamespaceKind, RuntimeConfig } from '../../oci-spec/runtime-config.js';
import { StasisError, fileError } from '../errors/index.js';
import type { CgroupLayout } from './cgroups.js';
import { readText } from './proc.js';

/** CRIU's name for what is mounted over masked files. */
export const kNullDevice = '/dev/null';

/** Namespaces whose external keys every client of CRIU uses. */
const externalNamespaceKeys: ReadonlyMap<string, string> = new Map([
  ['NEWNET', 'extRootNetNS'],
  ['NEWPID', 'extRootPidNS'],
]);
export const namespaceProcNames: Readonly<Record<NamespaceKind, string>> = {
  pid: 'pid',
  network: 'net',
  mount: 'mnt',
  ipc: 'ipc',
  uts: 'uts',
  user: 'user',
  cgroup: 'cgroup',
  time: 'time',
};

export interface CheckpointExternals {
  readonly mounts: ReadonlyMap<string, string>;
  readonly files: ReadonlySet<string>;
  readonly namespaces: ReadonlyMap<string, string>;
}

/** From the runtime's state, the directory that holds it, and the running init. */
export function checkpointExternals(
  state: ContainerRecord,
  stateRoot: string,
  layout: CgroupLayout,
): CheckpointExternals {
  const root = `/proc/${state.initHostPid}/root`;
  const mounts = new Map<string, string>();
  for (const mount of state.mounts) {
    if (mount.device === 'bind') {
      const inside = resolveInRoot(root, mount.destination);
      mounts.set(inside, inside);
    } else if (mount.device === 'cgroup' && layout.version === 1 && !hasOwnCgroupNamespace(state)) {
      for (const inside of cgroupMountPoints(layout, mount.destination)) mounts.set(inside, inside);
    }
  }
  const emptyBinds = bindsOfEmptyDirectory(state.initHostPid);
  for (const path of state.maskPaths) {
    // Masked directories are read-only tmpfs mounts, which the images carry; crun since 1.20 binds an empty directory.
    if (isFile(join(root, path))) mounts.set(resolveInRoot(root, path), kNullDevice);
    else if (emptyBinds.has(resolveInRoot(root, path)))
      mounts.set(resolveInRoot(root, path), join(stateRoot, kEmptyDirectoryName));
  }
  // Only bind mounts in a user namespace; elsewhere these are nodes, and nobody looks for a mount there.
  for (const path of state.devicePaths) mounts.set(normalize(path), normalize(path));
  const namespaces = new Map<string, string>();
  for (const [type, path] of state.namespaces) {
    const key = externalNamespaceKeys.get(type);
    if (path !== '' && key !== undefined) namespaces.set(type === 'NEWNET' ? 'net' : 'pid', key);
  }
  return { mounts, files: new Set(state.externalDescriptors.filter((link) => link !== kNullDevice)), namespaces };
}

/** Mount points of what crun binds over masked directories. */
export function bindsOfEmptyDirectory(hostPid: number): Set<string> {
  const result = new Set<string>();
  for (const line of readText(`/proc/${hostPid}/mountinfo`).split('\n')) {
    const [, , , root, mountPoint] = line.split(' ');
    if (mountPoint !== undefined && isEmptyDirectoryKey(root)) result.add(mountPoint);
  }
  return result;
}

/** Under crun the key is the path of the directory on the host that the images come from. */
export function isEmptyDirectoryKey(key: string | undefined): boolean {
  return key !== undefined && basename(key) === kEmptyDirectoryName;
}

export interface RestoreExternals {
  /** Key -> host path. */
  readonly mounts: ReadonlyMap<string, string>;
  /** Keys whose host path is no directory. */
  readonly fileMounts: ReadonlySet<string>;
  /** Namespaces to join: kind as in /proc/PID/ns -> path. */
  readonly joinNamespaces: ReadonlyMap<string, string>;
  /** Kinds that the spec wants anew. */
  readonly newNamespaces: ReadonlySet<string>;
}

export interface RestoreSide {
  readonly spec: RuntimeConfig;
  readonly bundle: string;
  readonly rootfs: string;
  readonly layout: CgroupLayout;
  readonly cgroupPaths: ReadonlyMap<string, string>;
  /** Key in the images -> host path, for masked directories that are binds. */
  readonly emptyDirectories: ReadonlyMap<string, string>;
}

/** From the spec of the restoring side, which alone says what the container gets from outside. */
export function restoreExternals(side: RestoreSide): RestoreExternals {
  const { spec, bundle, rootfs, layout, cgroupPaths } = side;
  const mounts = new Map<string, string>();
  const ownCgroups = spec.linux?.namespaces.some(({ type, path }) => type === 'cgroup' && path === '') ?? false;
  for (const mount of spec.mounts) {
    if (isBindMount(mount.options)) {
      mounts.set(
        resolveInRoot(rootfs, mount.destination),
        isAbsolute(mount.source) ? mount.source : join(bundle, mount.source),
      );
    } else if (mount.type === 'cgroup' && layout.version === 1 && !ownCgroups) {
      for (const [controller, inside] of cgroupMountsByController(layout, mount.destination)) {
        const path = cgroupPaths.get(controller);
        if (path !== undefined) mounts.set(inside, path);
      }
    }
  }
  mounts.set(kNullDevice, kNullDevice);
  // crun's clients of CRIU call a masked file by its path.
  for (const path of spec.linux?.maskedPaths ?? []) {
    if (!mounts.has(normalize(path))) mounts.set(normalize(path), kNullDevice);
  }
  for (const [key, path] of side.emptyDirectories) mounts.set(key, path);
  for (const { path } of containerDevices(spec)) {
    if (!mounts.has(normalize(path))) mounts.set(normalize(path), normalize(path));
  }
  const joinNamespaces = new Map<string, string>();
  const newNamespaces = new Set<string>();
  for (const { type, path } of spec.linux?.namespaces ?? []) {
    if (path === '') newNamespaces.add(namespaceProcNames[type]);
    else joinNamespaces.set(namespaceProcNames[type], path);
  }
  const fileMounts = new Set([...mounts].filter(([, path]) => isFile(path)).map(([key]) => key));
  return { mounts, fileMounts, joinNamespaces, newNamespaces };
}

/** Bind mounts of the spec whose source has gone since: found before anything is made. */
export function missingSources(spec: RuntimeConfig, bundle: string): StasisError[] {
  return spec.mounts.flatMap(({ destination, source, options }) => {
    if (!isBindMount(options)) return [];
    const path = isAbsolute(source) ? source : join(bundle, source);
    if (existsSync(path)) return [];
    return new StasisError({
      code: 'BUNDLE_INVALID',
      message: `cannot restore: the source of the bind mount ${JSON.stringify(destination)}, ${JSON.stringify(path)}, does not exist on this machine`,
      subject: { mount: destination, path },
      hint: 'make it, or bind something else there in config.json',
    });
  });
}

/** Open descriptors of the namespaces to join; the caller closes them. */
export function openNamespaces(paths: ReadonlyMap<string, string>): Map<string, number> {
  const opened = new Map<string, number>();
  for (const [kind, path] of paths) {
    try {
      opened.set(kind, openSync(path, 'r'));
    } catch (error) {
      for (const fd of opened.values()) closeSync(fd);
      throw fileError(`cannot join the ${kind} namespace of the bundle`, path, error, 'BUNDLE_INVALID');
    }
  }
  return opened;
}

/** Standard streams by the names that they had when the container was checkpointed: descriptors.json. */
export function parseDescriptors(text: string): string[] {
  const corrupt = (cause?: unknown): StasisError =>
    new StasisError({
      code: 'IMAGE_CORRUPT',
      message: 'cannot read the images: "descriptors.json" is not a list of three strings',
      subject: { image: 'descriptors.json' },
      hint: 'use another copy of the checkpoint',
      cause,
    });
  let value: unknown;
  try {
    value = JSON.parse(text);
    // crun's status holds the list as text, and its descriptors.json is that text once more.
    if (typeof value === 'string') value = JSON.parse(value);
  } catch (error) {
    throw corrupt(error);
  }
  if (!Array.isArray(value) || value.length > 3 || !value.every((item) => typeof item === 'string')) throw corrupt();
  return value as string[];
}

/** What our own standard streams are: they become the restored container's. */
export function ownDescriptorLinks(): string[] {
  return [0, 1, 2].map((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return kNullDevice;
    }
  });
}

function hasOwnCgroupNamespace(state: ContainerRecord): boolean {
  return state.namespaces.get('NEWCGROUP') === '';
}

function cgroupMountPoints(layout: CgroupLayout, destination: string): string[] {
  return [...cgroupMountsByController(layout, destination).values()];
}

/** runc binds every v1 hierarchy below the destination, under the name that it has on the host. */
function cgroupMountsByController(layout: CgroupLayout, destination: string): Map<string, string> {
  const result = new Map<string, string>();
  for (const [controller, mount] of layout.mounts) {
    if (controller !== '') result.set(controller, join(normalize(destination), basename(mount.mountPoint)));
  }
  return result;
}

/** The path as it is inside, symbolic links followed without leaving the root; unchanged if it does not exist yet. */
function resolveInRoot(root: string, path: string): string {
  const clean = normalize(`/${path}`);
  let fd: number;
  try {
    fd = nativeBinding().openInRoot(root, clean);
  } catch {
    return clean;
  }
  try {
    const resolved = readlinkSync(`/proc/self/fd/${fd}`);
    // In another mount namespace the link is already relative to that root; on the host it starts with the root's path.
    const top = rootPrefix(root);
    return top !== '' && resolved.startsWith(`${top}/`) ? resolved.slice(top.length) : resolved;
  } finally {
    closeSync(fd);
  }
}

function rootPrefix(root: string): string {
  if (root.startsWith('/proc/')) return '';
  const fd = openSync(root, 'r');
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } finally {
    closeSync(fd);
  }
}

function isFile(path: string): boolean {
  try {
    return !statSync(path).isDirectory();
  } catch {
    return false;
  }
}
