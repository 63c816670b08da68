// The changed files of a root file system, put into one. The archive may be
// anybody's, and the tree may hold any link: everything is opened component by
// component from a descriptor, and no link is ever followed (path_resolution(7)
// on /proc/self/fd/N/NAME looks up NAME in the open directory itself). All of it
// is checked in a first pass, before anything is changed in a second.
//
//   Undo            nothing: the caller has checked everything else before
//   If we die here  some files of the archive are there, each whole, and perhaps one under a hidden name
import {
  chmodSync,
  closeSync,
  constants,
  createWriteStream,
  fchmodSync,
  fchownSync,
  futimesSync,
  lchownSync,
  linkSync,
  lstatSync,
  lutimesSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  type Stats,
} from 'node:fs';
import { pipeline } from 'node:stream/promises';
import { accessListProblem, kAccessList, kDefaultList } from '../../oci-spec/access-control-list.js';
import { isCarriedAttribute, isForeignAttribute } from '../../oci-spec/checkpoint-archive.js';
import { errnoCode, fileError, type Degradation } from '../errors/index.js';
import { privateName } from './private-directory.js';
import { deletedPathProblem } from './read-archive.js';
import { corrupt, openArchive, quoted, readTar, type DeviceNumber, type Member } from './tar-reader.js';

const kMaxMembers = 1_000_000;
const kWhiteout = '.wh.';
const kOpaque = '.wh..wh..opq';

/** What Node has no call for; links are not followed. False: the file system or the kernel does not let us. */
export interface RootfsCalls {
  setAttribute(path: string, name: string, value: Buffer): boolean;
  makeNode(path: string, kind: 'p' | 'c' | 'b', major: number, minor: number): boolean;
}

export interface RootfsUpdate {
  /** rootfs-diff.tar, plain or compressed; undefined: nothing is new. */
  readonly tarFile: string | undefined;
  /** Paths in the container. */
  readonly deleted: readonly string[];
  readonly maxBytes?: number;
  /** By the spec of the side that restores; no other device is made. */
  readonly allowsDevice: (device: DeviceNumber) => boolean;
  readonly calls: RootfsCalls;
}

/** Throws ARCHIVE_CORRUPT before anything is changed. Returns what is not as it was. */
export async function applyRootfs(root: string, update: RootfsUpdate): Promise<Degradation[]> {
  const limits = { totalBytes: update.maxBytes ?? Number.MAX_SAFE_INTEGER, members: kMaxMembers };
  const label = update.tarFile ?? 'rootfs-diff.tar';
  for (const path of update.deleted) {
    const problem = deletedPathProblem(path);
    if (problem !== undefined) throw corrupt('the archive', `deleted.files names ${quoted(path)}, which ${problem}`);
  }
  using tree = new Tree(root, label, update);
  const check = new Check(tree, label);
  if (update.tarFile !== undefined)
    await readTar(await openArchive(update.tarFile), limits, async (one) => check.take(one), label);
  for (const path of update.deleted) check.removal(path);
  if (update.tarFile !== undefined) {
    await readTar(
      await openArchive(update.tarFile),
      limits,
      async (one, content) => {
        if (partsOf(one.name).length > 0) await tree.put(one, content);
      },
      label,
    );
  }
  for (const path of update.deleted) tree.remove(path.split('/').filter((part) => part !== ''));
  return tree.degradations();
}

/** The first pass. */
class Check {
  readonly #seen = new Map<string, Member['kind']>();
  readonly #tree: Tree;
  readonly #label: string;

  constructor(tree: Tree, label: string) {
    this.#tree = tree;
    this.#label = label;
  }

  take(one: Member): void {
    const refuse = (problem: string): never => {
      throw corrupt(this.#label, `member ${quoted(one.name)} ${problem}`);
    };
    const parts = partsOf(one.name);
    const problem = partsProblem(one.name, parts);
    if (problem !== undefined) refuse(problem);
    if (parts.length === 0) return one.kind === 'directory' ? undefined : refuse('has no name');
    const name = parts.join('/');
    const before = this.#seen.get(name);
    if (before !== undefined && !(before === 'directory' && one.kind === 'directory')) refuse('is there twice');
    if (one.kind === 'symlink' && (one.linkTarget === '' || one.linkTarget.includes('\0')))
      refuse('is a symbolic link to nowhere');
    if (one.kind === 'link') {
      const target = partsOf(one.linkTarget);
      if (target.length === 0 || partsProblem(one.linkTarget, target) !== undefined)
        refuse(`is a hard link out of the archive, to ${quoted(one.linkTarget)}`);
      const linked = this.#seen.get(target.join('/'));
      if (linked !== 'file' && linked !== 'fifo')
        refuse(`is a hard link to ${quoted(one.linkTarget)}, which is no earlier file`);
    }
    for (const list of [kAccessList, kDefaultList]) {
      const value = one.attributes.get(list);
      const wrong = value === undefined ? undefined : accessListProblem(value);
      if (wrong !== undefined) refuse(`has an access control list that ${wrong}`);
    }
    const parent = this.#wrongParent(parts);
    if (parent !== undefined) refuse(`lies below ${quoted(parent)}, which is not a directory`);
    this.#seen.set(name, one.kind);
  }

  removal(path: string): void {
    const parent = this.#wrongParent(path.split('/').filter((part) => part !== ''));
    if (parent === undefined) return;
    throw corrupt(
      this.#label,
      `deleted.files names ${quoted(path)}, which lies below ${quoted(parent)}, and that is not a directory`,
    );
  }

  /** In the archive itself and in the tree: a parent that is a link would lead elsewhere. */
  #wrongParent(parts: readonly string[]): string | undefined {
    for (let depth = 1; depth < parts.length; depth += 1) {
      const parent = parts.slice(0, depth).join('/');
      const kind = this.#seen.get(parent) ?? this.#tree.kindOf(parts.slice(0, depth));
      // What is not there yet has nothing below it in the tree, and may have in the archive.
      if (kind !== undefined && kind !== 'directory') return parent;
    }
    return undefined;
  }
}

function partsOf(name: string): string[] {
  return name.split('/').filter((part, at) => part !== '.' && !(part === '' && at > 0));
}

function partsProblem(name: string, parts: readonly string[]): string | undefined {
  if (name.startsWith('/')) return 'has an absolute name';
  if (name.includes('\0')) return 'has a null byte in its name';
  // What is not UTF-8 has been replaced by the reader, so that the name is another one.
  if (name.includes('\ufffd')) return 'has a name that is not UTF-8, which is not carried';
  if (Buffer.byteLength(name) > 4096) return 'has a name of more than 4096 bytes';
  if (parts.includes('..')) return 'leads out of the root file system';
  if (parts.some((part) => part === '')) return 'has an empty part in its name';
  if (parts.some((part) => Buffer.byteLength(part) > 255)) return 'has a part of more than 255 bytes in its name';
  return undefined;
}

class Tree {
  readonly #root: number;
  readonly #label: string;
  readonly #update: RootfsUpdate;
  /** Names that this archive brought: whiteouts and opaque marks speak of what was there before, wherever they stand. */
  readonly #brought = new Set<string>();
  readonly #partial: Degradation[] = [];
  /** Files without it, by attribute. */
  readonly #withoutAttribute = new Map<string, string[]>();

  constructor(root: string, label: string, update: RootfsUpdate) {
    this.#label = label;
    this.#update = update;
    try {
      this.#root = openSync(root, constants.O_RDONLY | constants.O_DIRECTORY);
    } catch (error) {
      throw fileError(`cannot change the root file system ${root}`, root, error);
    }
  }

  /** undefined: nothing is there. */
  kindOf(parts: readonly string[]): Member['kind'] | undefined {
    const stat = this.#within(parts.slice(0, -1), false, (directory) => this.#stat(directory, parts.at(-1)!));
    if (stat === undefined) return undefined;
    if (stat.isDirectory()) return 'directory';
    return stat.isFile() ? 'file' : 'symlink';
  }

  async put(one: Member, content: AsyncIterable<Buffer>): Promise<void> {
    const parts = partsOf(one.name);
    const name = parts.at(-1)!;
    const directory = this.#openDirectory(parts.slice(0, -1), true)!;
    try {
      if (name === kOpaque) this.#empty(directory, parts.slice(0, -1));
      else if (name.startsWith(kWhiteout)) this.#whiteOut(directory, parts, name.slice(kWhiteout.length));
      else if (one.isWhiteout) this.#whiteOut(directory, parts, name);
      else if (one.kind === 'directory') this.#putDirectory(directory, name, one);
      else await this.#putOther(directory, name, one, content);
      for (let depth = 1; depth <= parts.length; depth += 1) this.#brought.add(parts.slice(0, depth).join('/'));
    } catch (error) {
      throw fileError(`cannot write "/${parts.join('/')}" of the root file system`, parts.join('/'), error);
    } finally {
      closeSync(directory);
    }
  }

  remove(parts: readonly string[]): void {
    this.#within(parts.slice(0, -1), false, (directory) => remove(entry(directory, parts.at(-1)!)));
  }

  degradations(): Degradation[] {
    const without = [...this.#withoutAttribute].map(([name, paths]): Degradation => {
      const more = paths.length === 1 ? '' : ` (and ${paths.length - 1} more)`;
      const message = `${quoted(paths[0]!)}${more} is put back without the extended attribute ${quoted(name)}`;
      return { code: 'ROOTFS_PARTIAL', message, subject: { path: paths[0]! } };
    });
    return [...this.#partial, ...without];
  }

  [Symbol.dispose](): void {
    closeSync(this.#root);
  }

  #putDirectory(directory: number, name: string, one: Member): void {
    const stat = this.#stat(directory, name);
    if (stat !== undefined && !stat.isDirectory()) remove(entry(directory, name));
    if (stat?.isDirectory() !== true) mkdirSync(entry(directory, name), { mode: 0o700 });
    const fd = openSync(entry(directory, name), kDirectoryFlags);
    try {
      setFacts(fd, one);
      this.#setAttributes(entry(fd, '.'), one);
    } finally {
      closeSync(fd);
    }
  }

  /** Beside its place first, then renamed: what was there may be a link, or one file under two names. */
  async #putOther(directory: number, name: string, one: Member, content: AsyncIterable<Buffer>): Promise<void> {
    const temporary = entry(directory, privateName('new'));
    try {
      if (one.kind === 'fifo' || one.kind === 'device') {
        if (!this.#makeNode(temporary, one)) return;
      } else if (one.kind === 'symlink') {
        symlinkSync(one.linkTarget, temporary);
        lchownSync(temporary, one.uid, one.gid);
        lutimesSync(temporary, one.mtime, one.mtime);
      } else if (one.kind === 'link') {
        const target = partsOf(one.linkTarget);
        this.#within(target.slice(0, -1), false, (other) => linkSync(entry(other, target.at(-1)!), temporary));
      } else {
        const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
        const fd = openSync(temporary, flags, 0o600);
        try {
          await pipeline(content, createWriteStream('', { fd, autoClose: false, highWaterMark: 1 << 20 }));
          setFacts(fd, one);
        } finally {
          closeSync(fd);
        }
        // After the owner: chown(2) takes file capabilities away.
        this.#setAttributes(temporary, one);
      }
      const stat = this.#stat(directory, name);
      if (stat?.isDirectory() === true) remove(entry(directory, name));
      renameSync(temporary, entry(directory, name));
    } catch (error) {
      rmSync(temporary, { force: true });
      throw error;
    }
  }

  /** False, and told: it is not made. */
  #makeNode(temporary: string, one: Member): boolean {
    const path = `/${partsOf(one.name).join('/')}`;
    const { device } = one;
    const degrade = (message: string): false => {
      this.#partial.push({ code: 'ROOTFS_PARTIAL', message, subject: { path } });
      return false;
    };
    if (device !== undefined && !this.#update.allowsDevice(device)) {
      const name = `${device.type === 'c' ? 'character' : 'block'} device ${device.major}:${device.minor}`;
      return degrade(
        `${quoted(path)}, the ${name}, is not made: the spec does not allow it, and a restore never grants more than the spec`,
      );
    }
    if (!this.#update.calls.makeNode(temporary, device?.type ?? 'p', device?.major ?? 0, device?.minor ?? 0))
      return degrade(
        `${quoted(path)} is not made: EPERM (operation not permitted), as devices are in a user namespace`,
      );
    // Nobody else knows the name, and no link can be there: it has just been made.
    lchownSync(temporary, one.uid, one.gid);
    chmodSync(temporary, one.mode);
    lutimesSync(temporary, one.mtime, one.mtime);
    this.#setAttributes(temporary, one);
    return true;
  }

  #setAttributes(path: string, one: Member): void {
    for (const [name, value] of one.attributes) {
      if (isCarriedAttribute(name) && this.#update.calls.setAttribute(path, name, value)) continue;
      if (isForeignAttribute(name)) continue;
      const inside = `/${partsOf(one.name).join('/')}`;
      const paths = this.#withoutAttribute.get(name);
      if (paths === undefined) this.#withoutAttribute.set(name, [inside]);
      else paths.push(inside);
    }
  }

  #whiteOut(directory: number, parts: readonly string[], name: string): void {
    if (this.#brought.has([...parts.slice(0, -1), name].join('/'))) return;
    remove(entry(directory, name));
  }

  #empty(directory: number, parts: readonly string[]): void {
    for (const name of readdirSync(entry(directory, '.'))) {
      if (!this.#brought.has([...parts, name].join('/'))) remove(entry(directory, name));
    }
  }

  #stat(directory: number, name: string): Stats | undefined {
    return lstatSync(entry(directory, name), { throwIfNoEntry: false });
  }

  #within<T>(parts: readonly string[], make: boolean, use: (directory: number) => T): T | undefined {
    const directory = this.#openDirectory(parts, make);
    if (directory === undefined) return undefined;
    try {
      return use(directory);
    } finally {
      closeSync(directory);
    }
  }

  /** The caller closes it. undefined: it is not there, and is not to be made. */
  #openDirectory(parts: readonly string[], make: boolean): number | undefined {
    let at = openSync(entry(this.#root, '.'), kDirectoryFlags);
    for (const [depth, part] of parts.entries()) {
      try {
        if (make && this.#stat(at, part) === undefined) mkdirSync(entry(at, part), { mode: 0o755 });
        const next = openSync(entry(at, part), kDirectoryFlags);
        closeSync(at);
        at = next;
      } catch (error) {
        closeSync(at);
        if (errnoCode(error) === 'ENOENT' && !make) return undefined;
        if (errnoCode(error) === 'ENOTDIR' || errnoCode(error) === 'ELOOP') {
          throw corrupt(
            this.#label,
            `a path in it leads through ${quoted(`/${parts.slice(0, depth + 1).join('/')}`)}, which is not a directory of the root file system`,
            'restore into the root file system that the checkpoint was made from',
          );
        }
        throw error;
      }
    }
    return at;
  }
}

const kDirectoryFlags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;

/** An entry of an open directory, as openat(2) would find it. */
function entry(directory: number, name: string): string {
  return `/proc/self/fd/${directory}/${name}`;
}

/** Links are removed, not followed. */
function remove(path: string): void {
  rmSync(path, { recursive: true, force: true });
}

/** The owner first: chown(2) takes set-user-ID bits away. */
function setFacts(fd: number, one: Member): void {
  fchownSync(fd, one.uid, one.gid);
  fchmodSync(fd, one.mode);
  futimesSync(fd, one.mtime, one.mtime);
}
