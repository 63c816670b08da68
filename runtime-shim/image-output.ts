// Images on their way to a directory. They are written into a hidden directory
// inside it and move to their place at commit, the inventory last: until then
// an older checkpoint in the same place stays whole, and after a failure or a
// kill nothing there can be taken for a new one.
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  statfsSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { formatManifest, kManifestName, manifestEntry, pageFileEntry, type ManifestEntry } from './archive/manifest.js';
import { syncDirectory } from './archive/archive-file.js';
import { privateName, removeAbandoned } from './archive/private-directory.js';
import { makeDirectory } from './directories.js';
import { kParentName } from './engine/index.js';
import { fileError } from './errors/index.js';
import { nativeBinding, type PageFile } from '../nativecore/index.js';

export interface OutputFile {
  readonly name: string;
  readonly bytes: Uint8Array;
}

/** Where a checkpoint goes: a directory (here) or an archive (archive-output.ts). */
export interface CheckpointOutput extends Disposable {
  /** Of the checkpoint, for results. */
  readonly directory: string;
  /** Directory that the core writes page files into. */
  readonly fd: number;
  write(file: OutputFile): void;
  /** What the core has written; told before commit. */
  addPageFiles(files: readonly PageFile[]): void;
  /** Postcondition: the checkpoint is complete and on the disk, or nothing of it is there. */
  commit(inventory: OutputFile, besides: readonly OutputFile[]): Promise<void>;
  sizeBytes(): number;
}

/** Files of checkpoints, ours and other engines'; logs and stats are not among them. */
const imageName = /\.img(\.lz4|\.zst)?$|^descriptors\.json$|^stasis-(manifest|timings|tracking)\.json$|^parent$/;

// statfs(2), f_type.
const kTmpfsMagic = 0x01021994;
const kRamfsMagic = 0x858458f6;

/** There fsync(2) has nothing to do, and to call it for each file takes 10 ms of processor time all the same. */
function isInMemory(directory: string): boolean {
  const { type } = statfsSync(directory);
  return type === kTmpfsMagic || type === kRamfsMagic;
}

/** The checkpoint that these images leave pages to. */
export interface ParentLink {
  /** As the link says it, relative to the new images. */
  readonly link: string;
  /** Of its manifest, "" if it has none. */
  readonly digest: string;
}

export class ImageOutput implements CheckpointOutput {
  readonly directory: string;
  /** Of the hidden directory: the core writes page files through it. */
  readonly fd: number;
  readonly #staging: string;
  readonly #sync: boolean;
  readonly #entries = new Map<string, ManifestEntry>();
  /** Names that stand in the directory itself by now. */
  readonly #moved: string[] = [];
  readonly #parent: ParentLink | undefined;
  #done = false;

  /** `sync`: whether commit waits for the disk. */
  constructor(directory: string, sync: boolean, parent?: ParentLink) {
    this.#parent = parent;
    this.directory = directory;
    this.#staging = join(directory, privateName('images'));
    try {
      // Images hold memory contents, so secrets; the mode of a directory that exists is its owner's business.
      makeDirectory(directory, 0o700);
      this.#sync = sync && !isInMemory(directory);
      removeAbandoned(directory);
      mkdirSync(this.#staging, { mode: 0o700 });
      this.fd = openSync(this.#staging, 'r');
    } catch (error) {
      throw fileError(`cannot write images to ${directory}`, directory, error);
    }
  }

  write(file: OutputFile): void {
    try {
      writeFileSync(`${this.#staging}/${file.name}`, file.bytes, { mode: 0o600, flag: 'wx' });
    } catch (error) {
      throw fileError(`cannot write image ${file.name} in ${this.directory}`, join(this.directory, file.name), error);
    }
    this.#entries.set(file.name, manifestEntry(file.bytes));
  }

  addPageFiles(files: readonly PageFile[]): void {
    for (const file of files) this.#entries.set(file.name, pageFileEntry(file));
  }

  /** Postcondition: the checkpoint is complete and on the disk, or nothing of it is there. */
  async commit(inventory: OutputFile): Promise<void> {
    try {
      await this.#syncFiles([...this.#entries.keys()]);
      this.#entries.set(inventory.name, manifestEntry(inventory.bytes));
      const others = [...this.#entries.keys()].filter((name) => name !== inventory.name);
      const parentDigest = this.#parent?.digest ?? '';
      const manifest = { files: this.#entries, ...(parentDigest === '' ? {} : { parentDigest }) };
      this.#writeUnlisted({ name: kManifestName, bytes: formatManifest(manifest) });
      this.#writeUnlisted(inventory);
      await this.#syncFiles([kManifestName, inventory.name]);
      this.#removeOld(inventory.name);
      if (this.#parent !== undefined) {
        symlinkSync(this.#parent.link, join(this.#staging, kParentName));
        this.#move(kParentName);
      }
      for (const name of [...others, kManifestName]) this.#move(name);
      // Before the inventory, because it says that all the others are there.
      this.#syncDirectory();
      this.#move(inventory.name);
      this.#syncDirectory();
      this.#done = true;
    } catch (error) {
      // Only what is ours: an older checkpoint may still lie there whole.
      for (const name of this.#moved) rmSync(join(this.directory, name), { force: true });
      throw fileError(`cannot complete the checkpoint in ${this.directory}`, this.directory, error);
    }
  }

  /** Whether commit() does. */
  get waitsForDisk(): boolean {
    return this.#sync;
  }

  get committed(): boolean {
    return this.#done;
  }

  sizeBytes(): number {
    let sum = 0;
    for (const entry of this.#entries.values()) sum += entry.sizeBytes;
    return sum;
  }

  [Symbol.dispose](): void {
    closeSync(this.fd);
    rmSync(this.#staging, { recursive: true, force: true });
  }

  #writeUnlisted(file: OutputFile): void {
    writeFileSync(`${this.#staging}/${file.name}`, file.bytes, { mode: 0o600, flag: 'wx' });
  }

  async #syncFiles(names: readonly string[]): Promise<void> {
    if (!this.#sync) return;
    await nativeBinding().syncFiles(this.fd, names);
  }

  /** An older checkpoint ends here: its inventory first, so that no mixture ever looks whole. */
  #removeOld(inventoryName: string): void {
    const inventory = join(this.directory, inventoryName);
    if (statSync(inventory, { throwIfNoEntry: false }) !== undefined) {
      rmSync(inventory);
      this.#syncDirectory();
    }
    for (const name of readdirSync(this.directory)) {
      if (imageName.test(name)) rmSync(join(this.directory, name), { force: true });
    }
  }

  #move(name: string): void {
    renameSync(`${this.#staging}/${name}`, `${this.directory}/${name}`);
    this.#moved.push(name);
  }

  #syncDirectory(): void {
    if (!this.#sync) return;
    syncDirectory(this.directory);
  }
}
