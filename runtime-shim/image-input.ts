// Images in a directory, as the engine reads them: flat names, plain files,
// checked against the manifest where there is one.
import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  openSync,
  readSync,
  readdirSync,
  readlinkSync,
  realpathSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { hashFile } from './archive/file-digest.js';
import {
  isSame,
  kManifestName,
  manifestDigest,
  manifestEntry,
  parseManifest,
  type Manifest,
  type ManifestEntry,
} from './archive/manifest.js';
import { kParentName } from './engine/index.js';
import { StasisError, errnoCode, fileError } from './errors/index.js';

/** Larger than any image but page data, which the engine never reads whole. */
const kMaxImageBytes = 1 << 30;
const kMaximalParents = 256;
/** Hashed in less time than it takes to start a thread for it. */
const kSmallBytes = 256 << 10;

export class ImageInput {
  readonly directory: string;
  readonly fd: number;
  /** "" if the images carry no manifest. */
  readonly digest: string;
  readonly #manifest: Manifest | undefined;
  readonly #verified = new Set<string>();
  readonly #depth: number;
  #parent: ImageInput | undefined;

  /** `depth`: how many checkpoints have left pages to this one. */
  constructor(directory: string, depth = 0) {
    this.directory = directory;
    this.#depth = depth;
    try {
      this.fd = openSync(directory, constants.O_RDONLY | constants.O_DIRECTORY);
    } catch (error) {
      const missing = errnoCode(error) === 'ENOENT';
      throw missing
        ? incomplete(directory, 'there is no such directory')
        : fileError(`cannot read images from ${directory}`, directory, error);
    }
    const bytes = this.#readWhole(kManifestName);
    this.#manifest = bytes === undefined ? undefined : this.#parse(bytes);
    this.digest = bytes === undefined ? '' : manifestDigest(bytes);
    this.#checkPresence();
  }

  /**
   * The checkpoint that this one leaves pages to, undefined if it names none. Images may come from strangers, and a
   * link of theirs must not reach other checkpoints: it stays below the directory that this one lies in, and what it
   * leads to is the checkpoint that our manifest was written for.
   */
  parent(): ImageInput | undefined {
    if (this.#parent !== undefined) return this.#parent;
    const link = join(this.directory, kParentName);
    let target: string;
    try {
      readlinkSync(link);
      target = realpathSync(link);
    } catch (error) {
      if (errnoCode(error) === 'ENOENT') return undefined;
      throw fileError(`cannot read the images: the parent of ${this.directory}`, link, error);
    }
    const refuse = (why: string): StasisError =>
      new StasisError({
        code: 'IMAGE_MISMATCH',
        message: `cannot read the images: the parent checkpoint of ${this.directory} ${why}`,
        subject: { path: link },
        hint: 'keep the directories of an incremental checkpoint together, at their places relative to each other',
      });
    const place = dirname(realpathSync(this.directory));
    if (!target.startsWith(place === '/' ? '/' : `${place}/`)) throw refuse(`lies outside of ${place}`);
    if (this.#depth >= kMaximalParents) throw refuse(`is the ${kMaximalParents + 1}th in a row`);
    const parent = new ImageInput(target, this.#depth + 1);
    // A parent of CRIU's has no manifest, and so no digest.
    if (this.#manifest !== undefined && (this.#manifest.parentDigest ?? '') !== parent.digest) {
      parent[Symbol.dispose]();
      throw refuse('is not the one that it was made with');
    }
    this.#parent = parent;
    return parent;
  }

  /** Without directories, which may be those of earlier rounds, and without the link to the parent. */
  list(): string[] {
    const entries = readdirSync(this.directory, { withFileTypes: true });
    return entries.filter((entry) => !entry.isDirectory() && entry.name !== kParentName).map(({ name }) => name);
  }

  /** undefined: there is no such file. Throws when it is not the file that the manifest describes. */
  read(name: string): Uint8Array | undefined {
    const bytes = this.#readWhole(name);
    if (bytes === undefined) return undefined;
    const expected = this.#manifest?.files.get(name);
    if (expected?.sha256 !== undefined) {
      if (!isSame(manifestEntry(bytes), expected)) throw altered(name, this.directory);
      this.#verified.add(name);
    }
    return bytes;
  }

  sizeBytes(name: string): number | undefined {
    const path = this.#pathOf(name);
    if (path === undefined) return undefined;
    try {
      const found = lstatSync(path, { throwIfNoEntry: false });
      if (found === undefined) return undefined;
      if (found.isFile()) return found.size;
    } catch (error) {
      throw fileError(`cannot read image ${name}`, path, error);
    }
    throw notPlain(name, path);
  }

  readRange(name: string, offset: number, lengthBytes: number): Uint8Array | undefined {
    const { fd } = this.#open(name) ?? {};
    if (fd === undefined) return undefined;
    try {
      const bytes = Buffer.alloc(lengthBytes);
      return bytes.subarray(0, readSync(fd, bytes, 0, lengthBytes, offset));
    } finally {
      closeSync(fd);
    }
  }

  /** For somebody else to read from; the caller closes it. Undefined: there is no such file. */
  openFile(name: string): number | undefined {
    return this.#open(name)?.fd;
  }

  /**
   * Hashes what read() has not: page files, and images that a restore has no use for, because a checkpoint that
   * was altered anywhere is not trusted. Run while the executor fills memory, awaited before release.
   * `leftOut`: page files that the core compares, those of the parent as "parent/pages-1.img".
   */
  async verifyRest(leftOut: ReadonlySet<string> = new Set()): Promise<void> {
    for (const [name, expected] of this.#manifest?.files ?? []) {
      if (this.#verified.has(name) || leftOut.has(name)) continue;
      // Without a thread for it, and node starts four for the first: read() compares.
      const small = expected.sha256 !== undefined && expected.sizeBytes <= kSmallBytes;
      const same = small
        ? this.read(name) !== undefined
        : isSame(await hashFile(join(this.directory, name), expected), expected);
      if (!same) throw altered(name, this.directory);
    }
    const prefix = `${kParentName}/`;
    const ofParent = [...leftOut].filter((name) => name.startsWith(prefix)).map((name) => name.slice(prefix.length));
    await this.#parent?.verifyRest(new Set(ofParent));
  }

  /** Digests of a file as it was written, or of a parent's: "parent/pages-1.img"; undefined if the images do not say. */
  entryOf(name: string): ManifestEntry | undefined {
    const prefix = `${kParentName}/`;
    if (name.startsWith(prefix)) return this.#parent?.entryOf(name.slice(prefix.length));
    return this.#manifest?.files.get(name);
  }

  [Symbol.dispose](): void {
    this.#parent?.[Symbol.dispose]();
    closeSync(this.fd);
  }

  #parse(bytes: Uint8Array): Manifest {
    try {
      return parseManifest(Buffer.from(bytes).toString('utf8'));
    } catch (error) {
      throw new StasisError({
        code: 'IMAGE_CORRUPT',
        message: `cannot read the images: "${kManifestName}": ${(error as Error).message}`,
        subject: { image: kManifestName, path: this.directory },
        hint: 'use another copy of the checkpoint',
        cause: error,
      });
    }
  }

  #checkPresence(): void {
    if (this.sizeBytes('inventory.img') === undefined) {
      throw incomplete(this.directory, '"inventory.img" is missing, which is written last');
    }
    for (const [name, expected] of this.#manifest?.files ?? []) {
      const size = this.sizeBytes(name);
      if (size === undefined) throw incomplete(this.directory, `"${name}" is missing`);
      if (size === expected.sizeBytes) continue;
      throw new StasisError({
        code: 'IMAGE_CORRUPT',
        message: `cannot read the images: "${name}" has ${size} bytes, the manifest says ${expected.sizeBytes}`,
        subject: { image: name, path: this.directory },
        hint: 'use another copy of the checkpoint',
      });
    }
  }

  #readWhole(name: string): Uint8Array | undefined {
    const opened = this.#open(name);
    if (opened === undefined) return undefined;
    const { fd, size } = opened;
    try {
      if (size > kMaxImageBytes) {
        throw new StasisError({
          code: 'IMAGE_CORRUPT',
          message: `cannot read the images: "${name}" has ${size} bytes, more than any image may have (${kMaxImageBytes})`,
          subject: { image: name },
        });
      }
      const bytes = Buffer.allocUnsafe(size);
      let at = 0;
      while (at < size) {
        const got = readSync(fd, bytes, at, size - at, at);
        if (got === 0) break;
        at += got;
      }
      return bytes.subarray(0, at);
    } finally {
      closeSync(fd);
    }
  }

  /** Plain files directly in the directory only: no links, no pipes that would block us. */
  #open(name: string): { readonly fd: number; readonly size: number } | undefined {
    const path = this.#pathOf(name);
    if (path === undefined) return undefined;
    let fd: number;
    try {
      fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    } catch (error) {
      if (errnoCode(error) === 'ENOENT') return undefined;
      throw fileError(`cannot read image ${name}`, path, error);
    }
    const found = fstatSync(fd);
    if (found.isFile()) return { fd, size: found.size };
    closeSync(fd);
    throw notPlain(name, path);
  }

  #pathOf(name: string): string | undefined {
    // Not by join(): a checkpoint of a thousand processes has five thousand of them.
    return name.includes('/') || name === '..' ? undefined : `${this.directory}/${name}`;
  }
}

function incomplete(directory: string, what: string): StasisError {
  return new StasisError({
    code: 'IMAGE_MISSING',
    message: `cannot read images from ${directory}: ${what}`,
    subject: { path: directory },
    hint: 'give --image-path the directory of a complete checkpoint',
  });
}

function notPlain(name: string, path: string): StasisError {
  return new StasisError({
    code: 'IMAGE_CORRUPT',
    message: `cannot read the images: "${name}" is not a plain file`,
    subject: { image: name, path },
  });
}

function altered(name: string, directory: string): StasisError {
  return new StasisError({
    code: 'IMAGE_MISMATCH',
    message: `cannot read the images: "${name}" is not the file that was written: its digest differs from the manifest's`,
    subject: { image: name, path: join(directory, name) },
    hint: 'use another copy of the checkpoint',
  });
}
