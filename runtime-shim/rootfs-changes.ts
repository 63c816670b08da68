// What a container has changed in its root file system: the upper layer of its
// overlay, or the difference between its tree and a lower directory. Written as
// the two members that podman and CRI-O read: a tar file of what is new or
// changed, and a list of what is gone.
import { createWriteStream, lstatSync, readFileSync, readdirSync, readlinkSync, type Stats } from 'node:fs';
import { join } from 'node:path';
import { nativeBinding } from '../nativecore/index.js';
import { TarWriter } from './archive/tar-writer.js';
import { unescapeMountPath } from './checkpoint-steps.js';
import { readText } from './container/index.js';
import { fileError, type Degradation } from './errors/index.js';

export type RootfsSource =
  | { readonly kind: 'overlay'; readonly upper: string; readonly lowers: readonly string[] }
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
    return { kind: 'overlay', upper: unescapeMountPath(upper), lowers };
  }
  return undefined;
}

interface Change {
  /** Without a leading slash. */
  readonly name: string;
  readonly path: string;
  readonly stat: Stats;
}

export interface RootfsChanges {
  readonly changes: readonly Change[];
  /** Paths in the container. */
  readonly deleted: readonly string[];
}

const kOpaque = 'trusted.overlay.opaque';

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
    changes.push({ name: inside, path, stat });
    if (stat.isDirectory()) walkUpper(source, inside, skip, changes, deleted);
  }
}

function isOpaque(path: string): boolean {
  return nativeBinding().getAttribute(path, kOpaque)?.toString() === 'y';
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
  if (stat.isDirectory()) return false;
  if (stat.isSymbolicLink()) return readlinkSync(path) !== readlinkSync(oldPath);
  if (!stat.isFile()) return stat.rdev !== old.rdev;
  return stat.size !== old.size || stat.mtimeMs !== old.mtimeMs;
}

/** Returns what could not be carried, or changed while it was read. `since`: the moment of the capture, in ms since 1970. */
export async function writeRootfsDiff(
  changes: readonly Change[],
  tarFile: string,
  since: number,
): Promise<Degradation[]> {
  const degradations: Degradation[] = [];
  const degrade = (path: string, what: string): void => {
    degradations.push({ code: 'ROOTFS_PARTIAL', message: `"/${path}" ${what}`, subject: { path: `/${path}` } });
  };
  const tar = new TarWriter(createWriteStream(tarFile, { flags: 'wx', mode: 0o600, highWaterMark: 1 << 20 }), 'none');
  const links = new Map<string, string>();
  try {
    for (const { name, path, stat } of changes) {
      const facts = { name, mode: stat.mode & 0o7777, uid: stat.uid, gid: stat.gid, mtime: stat.mtime };
      if (nativeBinding().getAttribute(path, 'security.capability') !== undefined)
        degrade(name, 'is carried without its file capabilities');
      if (stat.isDirectory()) await tar.addDirectory(facts);
      else if (stat.isSymbolicLink()) await tar.addLink({ ...facts, type: 'symlink', target: readlinkSync(path) });
      else if (stat.isFile()) {
        const inode = `${stat.dev}:${stat.ino}`;
        const first = stat.nlink > 1 ? links.get(inode) : undefined;
        if (first !== undefined) {
          await tar.addLink({ ...facts, type: 'link', target: first });
          continue;
        }
        links.set(inode, name);
        await tar.addFile(facts, path);
        if (lstatSync(path).ctimeMs > since) degrade(name, 'was changed after the moment of the checkpoint');
      } else if (!stat.isSocket()) {
        // A socket is made by whoever binds it; pipes and devices come with the root file system.
        degrade(name, `is a ${stat.isFIFO() ? 'named pipe' : 'device'} and is not carried`);
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
