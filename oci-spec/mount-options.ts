// Mount options of an OCI spec, sorted into the mount(2) flags, propagation
// changes, recursive attributes and file system data that they stand for.

export const MS_RDONLY = 1;
export const MS_NOSUID = 2;
export const MS_NODEV = 4;
export const MS_NOEXEC = 8;
const MS_SYNCHRONOUS = 16;
const MS_REMOUNT = 32;
const MS_MANDLOCK = 64;
const MS_DIRSYNC = 128;
const MS_NOSYMFOLLOW = 256;
const MS_NOATIME = 1024;
const MS_NODIRATIME = 2048;
export const MS_BIND = 4096;
export const MS_REC = 16384;
const MS_SILENT = 32768;
const MS_POSIXACL = 65536;
export const MS_UNBINDABLE = 1 << 17;
export const MS_PRIVATE = 1 << 18;
export const MS_SLAVE = 1 << 19;
export const MS_SHARED = 1 << 20;
const MS_RELATIME = 1 << 21;
const MS_I_VERSION = 1 << 23;
const MS_STRICTATIME = 1 << 24;
const MS_LAZYTIME = 1 << 25;

const setFlags = new Map<string, number>([
  ['acl', MS_POSIXACL],
  ['bind', MS_BIND],
  ['dirsync', MS_DIRSYNC],
  ['iversion', MS_I_VERSION],
  ['lazytime', MS_LAZYTIME],
  ['mand', MS_MANDLOCK],
  ['noatime', MS_NOATIME],
  ['nodev', MS_NODEV],
  ['nodiratime', MS_NODIRATIME],
  ['noexec', MS_NOEXEC],
  ['nosuid', MS_NOSUID],
  ['nosymfollow', MS_NOSYMFOLLOW],
  ['rbind', MS_BIND | MS_REC],
  ['relatime', MS_RELATIME],
  ['remount', MS_REMOUNT],
  ['ro', MS_RDONLY],
  ['silent', MS_SILENT],
  ['strictatime', MS_STRICTATIME],
  ['sync', MS_SYNCHRONOUS],
]);

const clearFlags = new Map<string, number>([
  ['async', MS_SYNCHRONOUS],
  ['atime', MS_NOATIME],
  ['dev', MS_NODEV],
  ['diratime', MS_NODIRATIME],
  ['exec', MS_NOEXEC],
  ['loud', MS_SILENT],
  ['noacl', MS_POSIXACL],
  ['noiversion', MS_I_VERSION],
  ['nolazytime', MS_LAZYTIME],
  ['nomand', MS_MANDLOCK],
  ['norelatime', MS_RELATIME],
  ['nostrictatime', MS_STRICTATIME],
  ['rw', MS_RDONLY],
  ['suid', MS_NOSUID],
  ['symfollow', MS_NOSYMFOLLOW],
]);

export const propagationFlags: ReadonlyMap<string, number> = new Map([
  ['private', MS_PRIVATE],
  ['rprivate', MS_PRIVATE | MS_REC],
  ['slave', MS_SLAVE],
  ['rslave', MS_SLAVE | MS_REC],
  ['shared', MS_SHARED],
  ['rshared', MS_SHARED | MS_REC],
  ['unbindable', MS_UNBINDABLE],
  ['runbindable', MS_UNBINDABLE | MS_REC],
]);

// mount_setattr(2), for the recursive variants ("rro").
const MOUNT_ATTR__ATIME = 0x70;
const attributes = new Map<string, number>([
  ['ro', 0x1],
  ['nosuid', 0x2],
  ['nodev', 0x4],
  ['noexec', 0x8],
  ['relatime', 0x0],
  ['noatime', 0x10],
  ['strictatime', 0x20],
  ['nodiratime', 0x80],
  ['nosymfollow', 0x200000],
]);
const attributeOpposites = new Map<string, string>([
  ['rw', 'ro'],
  ['suid', 'nosuid'],
  ['dev', 'nodev'],
  ['exec', 'noexec'],
  ['norelatime', 'relatime'],
  ['atime', 'noatime'],
  ['nostrictatime', 'strictatime'],
  ['diratime', 'nodiratime'],
  ['symfollow', 'nosymfollow'],
]);

export interface MountOptions {
  readonly flags: number;
  readonly propagation: readonly number[];
  readonly recursiveSet: number;
  readonly recursiveClear: number;
  readonly copyUp: boolean;
  readonly data: string;
}

export function parseMountOptions(options: readonly string[]): MountOptions {
  let flags = 0;
  let recursiveSet = 0;
  let recursiveClear = 0;
  let copyUp = false;
  const propagation: number[] = [];
  const data: string[] = [];
  for (const option of options) {
    const set = setFlags.get(option);
    const clear = clearFlags.get(option);
    const propagate = propagationFlags.get(option);
    const attribute = option.startsWith('r') ? option.slice(1) : '';
    const opposite = attributeOpposites.get(attribute);
    if (set !== undefined) flags |= set;
    else if (clear !== undefined) flags &= ~clear;
    else if (propagate !== undefined) propagation.push(propagate);
    else if (attributes.has(attribute)) {
      const bits = attributes.get(attribute)!;
      recursiveSet |= bits;
      // mount_setattr(2): an access-time mode can only be set if the whole field is cleared in the same call.
      if ((bits & ~MOUNT_ATTR__ATIME) === 0) recursiveClear |= MOUNT_ATTR__ATIME;
    } else if (opposite !== undefined) recursiveClear |= attributes.get(opposite)!;
    else if (option === 'tmpcopyup') copyUp = true;
    else data.push(option);
  }
  return { flags, propagation, recursiveSet, recursiveClear, copyUp, data: data.join(',') };
}

export function isBindMount(options: readonly string[]): boolean {
  return (parseMountOptions(options).flags & MS_BIND) !== 0;
}
