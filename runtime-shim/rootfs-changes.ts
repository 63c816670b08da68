// What a container has changed in its root file system: the upper layer of its
// overlay, or the difference between its tree and a lower directory. Written as
// the two members that podman and CRI-O read: a tar file of what is new or
// changed, and a list of what is gone.
import { createWriteStream, lstatSync, readFileSync, readdirSync, readlinkSync, type Stats } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { nativeBinding } from '../nativecore/index.js';
import { kAccessList, kDefaultList, listOfMode, noList } from '../oci-spec/access-control-list.js';
import { isCarriedAttribute, isForeignAttribute } from '../oci-spec/checkpoint-archive.js';
import type { DeviceNumber } from './archive/tar-reader.js';
import { hasPlaceForNode, TarWriter } from './archive/tar-writer.js';
import { unescapeMountPath } from './checkpoint-steps.js';
import { readText } from './container/index.js';
import { fileError, type Degradation } from './errors/index.js';

export type RootfsSource =
  | {
      readonly kind: 'overlay';
      readonly upper: string;
      readonly lowers: readonly string[];
      /** What the container sees: for what the upper layer holds in part only. */
      readonly merged: string;
    }
  | { readonly kind: 'compared'; readonly root: string; readonly lower: string };

/** The container's root, from its own list of mounts; undefined: it is no overlay whose directories can be seen from here. */
export function overlayOfContainer(initHostPid: number): RootfsSource | undefined {
  for (const line of readText(`/proc/${initHostPid}/mountinfo`).split('\n')) {
    const [before, after] = line.split(' - ');
    if ((before ?? '').split(' ')[4] !== '/') continue;
    const [type, , options] = (after ?? '').split(' ');
    if (type !== 'overlay' || options === undefined) return undefined;
    const values = new Map(options.split(',').map((option) => option.split('=') as [string, string | undefined]));
    const upper = values.get('upperdir');
    // A colon inside a name is escaped; such names are not looked for.
    const lowers = (values.get('lowerdir') ?? '').split(':').map(unescapeMountPath);
    if (upper?.startsWith('/') !== true || lstatSync(upper, { throwIfNoEntry: false }) === undefined) return undefined;
    return { kind: 'overlay', upper: unescapeMountPath(upper), lowers, merged: `/proc/${initHostPid}/root` };
  }
  return undefined;
}

const kWhiteout = '.wh.';

interface Change {
  /** Without a leading slash. */
  readonly name: string;
  /** Where its content is. */
  readonly path: string;
  readonly stat: Stats;
  /** Where its extended attributes are, if elsewhere. */
  readonly attributesOf?: string;
}

export interface RootfsChanges {
  readonly changes: readonly Change[];
  /** Paths in the container. */
  readonly deleted: readonly string[];
}

/** overlayfs.rst; "user." in place of "trusted." where the mount option "userxattr" is given. */
const overlayAttribute = (path: string, name: 'opaque' | 'metacopy' | 'redirect'): Buffer | undefined =>
  nativeBinding().getAttribute(path, `trusted.overlay.${name}`) ??
  nativeBinding().getAttribute(path, `user.overlay.${name}`);

/** Deterministic: sorted by name, parents before children. */
export function findChanges(source: RootfsSource, skip: ReadonlySet<string>): RootfsChanges {
  const changes: Change[] = [];
  const deleted: string[] = [];
  if (source.kind === 'overlay') walkUpper(source, '', skip, changes, deleted);
  else compareTrees(source, '', skip, changes, deleted);
  return { changes, deleted };
}

function walkUpper(
  source: Extract<RootfsSource, { kind: 'overlay' }>,
  directory: string,
  skip: ReadonlySet<string>,
  changes: Change[],
  deleted: string[],
): void {
  const names = readdirSync(join(source.upper, directory)).sort();
  // What lies below an opaque directory is gone, but for what is in it again.
  if (directory !== '' && isOpaque(join(source.upper, directory))) {
    for (const gone of namesBelow(source.lowers, directory)) {
      if (!names.includes(gone)) deleted.push(`/${directory}/${gone}`);
    }
  }
  for (const name of names) {
    const inside = directory === '' ? name : `${directory}/${name}`;
    if (skip.has(`/${inside}`)) continue;
    const path = join(source.upper, inside);
    const stat = lstatSync(path);
    if (stat.isCharacterDevice() && stat.rdev === 0) {
      deleted.push(`/${inside}`);
      continue;
    }
    // metacopy: the upper layer has owner and mode, and the content is below still.
    const isPart = stat.isFile() && overlayAttribute(path, 'metacopy') !== undefined;
    changes.push({ name: inside, path: isPart ? join(source.merged, inside) : path, stat, attributesOf: path });
    if (!stat.isDirectory()) continue;
    // redirect_dir: a directory of a lower layer that has been renamed, whose content is below, and elsewhere.
    if (overlayAttribute(path, 'redirect') !== undefined) walkMerged(source, inside, skip, changes, deleted);
    else walkUpper(source, inside, skip, changes, deleted);
  }
}

/** All of a directory, as the container sees it. */
function walkMerged(
  source: Extract<RootfsSource, { kind: 'overlay' }>,
  directory: string,
  skip: ReadonlySet<string>,
  changes: Change[],
  deleted: string[],
): void {
  const names = readdirSync(join(source.merged, directory)).sort();
  for (const gone of namesBelow(source.lowers, directory)) {
    if (!names.includes(gone)) deleted.push(`/${directory}/${gone}`);
  }
  for (const name of names) {
    const inside = `${directory}/${name}`;
    if (skip.has(`/${inside}`)) continue;
    const path = join(source.merged, inside);
    const stat = lstatSync(path);
    changes.push({ name: inside, path, stat });
    if (stat.isDirectory()) walkMerged(source, inside, skip, changes, deleted);
  }
}

function isOpaque(path: string): boolean {
  return overlayAttribute(path, 'opaque')?.toString() === 'y';
}

/** Of the lower layers, top to bottom, as the container saw them. */
function namesBelow(lowers: readonly string[], directory: string): string[] {
  const seen = new Map<string, boolean>();
  for (const lower of lowers) {
    const path = join(lower, directory);
    const stat = lstatSync(path, { throwIfNoEntry: false });
    if (stat === undefined) continue;
    if (!stat.isDirectory()) break;
    for (const name of readdirSync(path)) {
      if (seen.has(name)) continue;
      const entry = lstatSync(join(path, name));
      seen.set(name, !(entry.isCharacterDevice() && entry.rdev === 0));
    }
    if (isOpaque(path)) break;
  }
  return [...seen]
    .filter(([, there]) => there)
    .map(([name]) => name)
    .sort();
}

function compareTrees(
  source: Extract<RootfsSource, { kind: 'compared' }>,
  directory: string,
  skip: ReadonlySet<string>,
  changes: Change[],
  deleted: string[],
): void {
  const names = readdirSync(join(source.root, directory)).sort();
  const lowerDirectory = join(source.lower, directory);
  const before = lstatSync(lowerDirectory, { throwIfNoEntry: false });
  if (before?.isDirectory() === true) {
    for (const name of readdirSync(lowerDirectory).sort()) {
      const inside = directory === '' ? name : `${directory}/${name}`;
      if (!names.includes(name) && !skip.has(`/${inside}`)) deleted.push(`/${inside}`);
    }
  }
  for (const name of names) {
    const inside = directory === '' ? name : `${directory}/${name}`;
    if (skip.has(`/${inside}`)) continue;
    const path = join(source.root, inside);
    const stat = lstatSync(path);
    const old = lstatSync(join(source.lower, inside), { throwIfNoEntry: false });
    if (old === undefined || differs(path, stat, join(source.lower, inside), old))
      changes.push({ name: inside, path, stat });
    if (stat.isDirectory()) compareTrees(source, inside, skip, changes, deleted);
  }
}

function differs(path: string, stat: Stats, oldPath: string, old: Stats): boolean {
  // The same inode under two names (hard links of one file): changed in both or in neither.
  if (stat.dev === old.dev && stat.ino === old.ino) return false;
  if (stat.mode !== old.mode || stat.uid !== old.uid || stat.gid !== old.gid) return true;
  if (attributesText(path) !== attributesText(oldPath)) return true;
  if (stat.isDirectory()) return false;
  if (stat.isSymbolicLink()) return readlinkSync(path) !== readlinkSync(oldPath);
  if (!stat.isFile()) return stat.rdev !== old.rdev;
  return stat.size !== old.size || stat.mtimeMs !== old.mtimeMs;
}

function carriedAttributes(path: string): Map<string, Buffer> {
  const native = nativeBinding();
  const found = new Map<string, Buffer>();
  for (const name of native.listAttributes(path).sort()) {
    const value = isCarriedAttribute(name) ? native.getAttribute(path, name) : undefined;
    if (value !== undefined) found.set(name, value);
  }
  return found;
}

/**
 * What is made in a directory with a default access control list inherits it: whoever unpacks takes it away again where a
 * file has none.
 */
function withoutInheritedLists(attributes: Map<string, Buffer>, stat: Stats): Map<string, Buffer> {
  if (!attributes.has(kAccessList)) attributes.set(kAccessList, listOfMode(stat.mode));
  if (stat.isDirectory() && !attributes.has(kDefaultList)) attributes.set(kDefaultList, noList);
  return attributes;
}

function attributesText(path: string): string {
  return [...carriedAttributes(path)].map(([name, value]) => `${name}=${value.toString('hex')}`).join();
}

/** Linux: 12 bits of major number, 20 of minor (makedev(3)). */
function deviceOf(stat: Stats): DeviceNumber {
  const { rdev } = stat;
  return {
    type: stat.isBlockDevice() ? 'b' : 'c',
    major: (rdev >>> 8) & 0xfff,
    minor: (rdev & 0xff) | ((rdev >>> 12) & 0xfff00),
  };
}

/** Returns what could not be carried, or changed while it was read. `since`: the moment of the capture, in ms since 1970. */
export async function writeRootfsDiff(
  changes: readonly Change[],
  tarFile: string,
  since: number,
  allowsDevice: (device: DeviceNumber) => boolean,
): Promise<Degradation[]> {
  const degradations: Degradation[] = [];
  const degrade = (path: string, what: string): void => {
    degradations.push({ code: 'ROOTFS_PARTIAL', message: `"/${path}" ${what}`, subject: { path: `/${path}` } });
  };
  const tar = new TarWriter(createWriteStream(tarFile, { flags: 'wx', mode: 0o600, highWaterMark: 1 << 20 }), 'none');
  const links = new Map<string, string>();
  try {
    for (const { name, path, stat, attributesOf } of changes) {
      const plain = { name, mode: stat.mode & 0o7777, uid: stat.uid, gid: stat.gid, mtime: stat.mtime };
      if (basename(name).startsWith(kWhiteout)) {
        degrade(name, 'is not carried: readers of the archive take the name for a mark that a file was deleted');
        continue;
      }
      const holder = attributesOf ?? path;
      // A link has none that travel (xattr(7)).
      const hasAttributes = !stat.isSymbolicLink() && !stat.isSocket();
      const found = hasAttributes ? carriedAttributes(holder) : new Map<string, Buffer>();
      const inherits = hasAttributes && nativeBinding().getAttribute(dirname(holder), kDefaultList) !== undefined;
      const facts = { ...plain, attributes: inherits ? withoutInheritedLists(found, stat) : found };
      for (const attribute of hasAttributes ? nativeBinding().listAttributes(holder) : []) {
        if (!isCarriedAttribute(attribute) && !isForeignAttribute(attribute))
          degrade(name, `is carried without its extended attribute ${JSON.stringify(attribute)}`);
      }
      // Links of one pipe or file are links again.
      const inode = `${stat.dev}:${stat.ino}`;
      const first = stat.nlink > 1 && (stat.isFile() || stat.isFIFO()) ? links.get(inode) : undefined;
      if (first !== undefined) {
        await tar.addLink({ ...plain, type: 'link', target: first });
        continue;
      }
      links.set(inode, name);
      if (stat.isDirectory()) await tar.addDirectory(facts);
      else if (stat.isSymbolicLink()) await tar.addLink({ ...plain, type: 'symlink', target: readlinkSync(path) });
      else if (stat.isFile()) {
        await tar.addFile(facts, path);
        if (lstatSync(path).ctimeMs > since) degrade(name, 'was changed after the moment of the checkpoint');
      } else if (stat.isFIFO()) {
        await tar.addNode({ ...facts, type: 'fifo', major: 0, minor: 0 });
      } else if (stat.isSocket()) {
        // It is nobody's without the process that bound it; the restore binds those that are open again.
        degrade(name, 'is a socket and is not carried; whoever binds it makes it');
      } else {
        const device = deviceOf(stat);
        if (allowsDevice(device) && hasPlaceForNode(device)) await tar.addNode({ ...facts, ...device });
        else {
          const kind = device.type === 'c' ? 'character' : 'block';
          degrade(
            name,
            `is the ${kind} device ${device.major}:${device.minor} and is not carried: the spec does not allow it, and a restore never grants more than the spec`,
          );
        }
      }
    }
    await tar.finish();
  } catch (error) {
    tar.abort();
    throw fileError('cannot read the changed files of the container', tarFile, error);
  }
  return degradations;
}

/** Mount points inside the root that are not its own content. */
export function mountPointsOf(initHostPid: number): Set<string> {
  const points = new Set<string>();
  for (const line of readFileSync(`/proc/${initHostPid}/mountinfo`, 'utf8').split('\n')) {
    const point = line.split(' ')[4];
    if (point !== undefined && point !== '/') points.add(unescapeMountPath(point));
  }
  return points;
}
