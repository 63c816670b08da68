// The mount tree of the tree's mount namespace: which mounts can be carried,
// their entries, and the content of each tmpfs. How it is put together again
// is mount-tree.ts.
import { fstype, type mnt_entry } from '../../../oci-spec/images/messages.js';
import type { EncodeContext } from '../encode-context.js';
import type { Room } from '../room.js';
import { parseCgroups } from './cgroups.js';
import { compileHostSources, compileMountTree } from './mount-tree.js';
import { freshTypes, isBelow, mountFlag } from './mount-entry.js';
import { parseMountinfo, type Mount } from './mountinfo.js';
import { namespaceOf } from './namespaces.js';
import { encodeTmpfs } from './tmpfs.js';
import { insideGid, insideUid } from './user-namespace.js';

const optionFlags = new Map<string, number>([
  ['ro', mountFlag.readOnly],
  ['nosuid', mountFlag.noSuid],
  ['nodev', mountFlag.noDev],
  ['noexec', mountFlag.noExec],
  ['noatime', mountFlag.noAtime],
  ['nodiratime', mountFlag.noDirAtime],
  ['relatime', mountFlag.relAtime],
  ['nosymfollow', mountFlag.noSymFollow],
]);

const superFlags = new Map<string, number>([
  ['ro', mountFlag.readOnly],
  ['sync', 1 << 4],
  ['dirsync', 1 << 7],
  ['mand', 1 << 6],
  ['lazytime', 1 << 25],
]);

const types: Readonly<Record<string, number>> = {
  proc: fstype.PROC,
  sysfs: fstype.SYSFS,
  devtmpfs: fstype.DEVTMPFS,
  binfmt_misc: fstype.BINFMT_MISC,
  tmpfs: fstype.TMPFS,
  devpts: fstype.DEVPTS,
  pstore: fstype.PSTORE,
  securityfs: fstype.SECURITYFS,
  fusectl: fstype.FUSECTL,
  debugfs: fstype.DEBUGFS,
  tracefs: fstype.TRACEFS,
  cgroup: fstype.CGROUP,
  cgroup2: fstype.CGROUP2,
  mqueue: fstype.MQUEUE,
  fuse: fstype.FUSE,
  overlay: fstype.OVERLAYFS,
  autofs: fstype.AUTOFS,
};

/** The part of a new mount tree that comes before the ids change; see mount-tree.ts. */
export const hostPathsRoom: Room = { kind: 'host-paths', compile: compileHostSources };

const kDeletedRoot = '//deleted';

export const mountsRoom: Room = {
  kind: 'mounts',
  encode,
  compile: compileMountTree,
};

function encode(ctx: EncodeContext): void {
  const namespace = namespaceOf(ctx, 'mnt');
  if (namespace === undefined || namespace.own) return;
  const captured = ctx.capture.mountNamespaces.find(({ inode }) => inode === namespace.inode);
  if (captured === undefined) {
    ctx.object(
      'CAPTURE_NAMESPACE_UNSUPPORTED',
      'the mount namespace of the tree was not captured',
      ctx.subjectOfTask(ctx.root),
    );
    return;
  }
  const mounts = parseMountinfo(captured.mountinfo);
  const root = mounts.find((mount) => mount.mountPoint === '/');
  const carried = new Set<number>();
  const entries = mounts.map((mount) => {
    if (mount !== root) check(mount, root, mounts, ctx);
    return entryOf(mount, ctx);
  });
  for (const mount of mounts) {
    if (
      mount === root ||
      mount.type !== 'tmpfs' ||
      ctx.options.externalMounts.has(mount.mountPoint) ||
      carried.has(mount.device)
    )
      continue;
    carried.add(mount.device);
    const content = captured.tmpfs.find(({ device }) => Number(device) === mount.device);
    if (content !== undefined) encodeTmpfs(ctx, content);
    else object(ctx, mount, 'is a tmpfs whose content was not captured');
  }
  // The format has them last first.
  for (const entry of entries.reverse()) ctx.images.add('mountpoints', namespace.id, entry);
}

function object(ctx: EncodeContext, mount: Mount, what: string, hint?: string): void {
  ctx.object(
    'CAPTURE_MOUNT_UNSUPPORTED',
    `mount "${mount.mountPoint}" ${what}`,
    { mount: mount.mountPoint, path: mount.mountPoint },
    hint,
  );
}

function check(mount: Mount, root: Mount | undefined, mounts: readonly Mount[], ctx: EncodeContext): void {
  if (ctx.options.externalMounts.has(mount.mountPoint)) return;
  if (mount.mountPoint === '/') {
    object(ctx, mount, 'covers the root of the container');
    return;
  }
  if (mount.root.endsWith(kDeletedRoot)) {
    object(ctx, mount, 'is bound from a file or directory that has been deleted');
    return;
  }
  if (isCgroup(mount)) return;
  const type = types[mount.type];
  if (type !== undefined && freshTypes.has(type) && mount.root === '/') return;
  // A bind: its super block has to come from somewhere that is carried.
  const source = mounts.find(
    (other) =>
      other !== mount &&
      other.device === mount.device &&
      isBelow(mount.root, other.root) &&
      (other === root || ctx.options.externalMounts.has(other.mountPoint) || isFresh(other)),
  );
  if (source !== undefined) return;
  object(
    ctx,
    mount,
    mount.root === '/'
      ? `is a file system of type ${mount.type}, which is not carried`
      : `is bound from "${mount.root}" of a ${mount.type} file system outside of the container`,
    "list it as a bind mount in the container's config.json, so that the restoring side provides it",
  );
}

function isFresh(mount: Mount): boolean {
  const type = types[mount.type];
  return type !== undefined && freshTypes.has(type) && mount.root === '/';
}

function isCgroup(mount: Mount): boolean {
  return mount.type === 'cgroup' || mount.type === 'cgroup2';
}

function entryOf(mount: Mount, ctx: EncodeContext): mnt_entry {
  const { externalKey, root } = externalOf(mount, ctx);
  const [, ...options] = mount.superOptions;
  const type = types[mount.type] ?? fstype.UNSUPPORTED;
  const plain = options.filter((option) => !superFlags.has(option)).map((option) => insideIds(option, ctx));
  return {
    fstype: type,
    mnt_id: mount.id,
    root_dev: mount.device,
    parent_mnt_id: mount.parentId,
    flags: flagsOf(mount),
    root,
    mountpoint: mount.mountPoint,
    source: mount.source,
    options: plain.join(','),
    ...(mount.sharedId === 0 ? {} : { shared_id: mount.sharedId }),
    ...(mount.masterId === 0 ? {} : { master_id: mount.masterId }),
    sb_flags: mount.superOptions.reduce((flags, option) => flags | (superFlags.get(option) ?? 0), 0),
    ...(externalKey === undefined ? {} : { ext_key: externalKey }),
  };
}

/** Owners among the options are the host's numbers here, and the container's in images. */
function insideIds(option: string, ctx: EncodeContext): string {
  const match = /^(uid|gid)=(\d+)$/.exec(option);
  if (match === null) return option;
  const id = Number(match[2]);
  return `${match[1]}=${match[1] === 'uid' ? insideUid(ctx, id) : insideGid(ctx, id)}`;
}

/**
 * What the restoring side calls the mount, if it provides it. A cgroup
 * hierarchy is mounted afresh when the tree has a cgroup namespace (then its
 * root is the namespace's) or when all of it was visible; otherwise only the
 * restoring side knows what the container's group is called.
 */
function externalOf(mount: Mount, ctx: EncodeContext): { externalKey: string | undefined; root: string } {
  const given = ctx.options.externalMounts.get(mount.mountPoint);
  if (given !== undefined || !isCgroup(mount) || mount.root === '/') return { externalKey: given, root: mount.root };
  const namespace = namespaceOf(ctx, 'cgroup');
  if (namespace !== undefined && !namespace.own) {
    const own = parseCgroups(ctx.root.raw.cgroup).some((member) => member.path === mount.root);
    if (own || mount.root.startsWith('/..')) return { externalKey: undefined, root: '/' };
  }
  return { externalKey: mount.mountPoint, root: mount.root };
}

function flagsOf(mount: Mount): number {
  let flags = 0;
  for (const option of mount.options) flags |= optionFlags.get(option) ?? 0;
  if (mount.sharedId !== 0) flags |= mountFlag.shared;
  if (mount.masterId !== 0) flags |= mountFlag.slave;
  if (mount.unbindable) flags |= mountFlag.unbindable;
  if (mount.sharedId === 0 && mount.masterId === 0 && !mount.unbindable) flags |= mountFlag.private;
  return flags >>> 0;
}
