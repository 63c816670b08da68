// Images on their way into an archive, in place of a directory (image-output.ts).
// What is known goes into the stream while the core still writes page files; a
// page file goes in piece by piece, and its disk space is given back piece by piece.
//
//   Undo            the temporary file and the staging directory are removed
//   If we die here  both stay under names that tell so, and go when the next archive is written there;
//                   the target runs on, because it is ended only after commit
import { closeSync, existsSync, openSync, readFileSync, readdirSync, rmSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { nativeBinding, type PageFile } from '../nativecore/index.js';
import { member } from '../oci-spec/checkpoint-archive.js';
import { ArchiveFile, kStandardOutput } from './archive/archive-file.js';
import { type Compression } from './archive/compression.js';
import { formatManifest, kManifestName, manifestEntry, pageFileEntry, type ManifestEntry } from './archive/manifest.js';
import { PrivateDirectory } from './archive/private-directory.js';
import { TarWriter, type AfterPiece } from './archive/tar-writer.js';
import { fileError, StasisError } from './errors/index.js';
import type { CheckpointOutput, OutputFile } from './image-output.js';

export interface ArchiveTarget {
  /** Absolute, or "-" for standard output. */
  readonly file: string;
  readonly compression: Compression;
  /** Told how many bytes of how many have gone in. */
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
}

/** What lies beside the images: made when the target stands still or has gone on. */
export interface ArchiveExtras {
  /** Plain members, by name. */
  readonly files: readonly OutputFile[];
  /** Writes rootfs-diff.tar into this directory, and says which files are gone; undefined: it is not carried. */
  readonly rootfs: ((tarFile: string) => Promise<readonly string[]>) | undefined;
}

export class ArchiveOutput implements CheckpointOutput {
  /** Of the archive, for results. */
  readonly directory: string;
  readonly fd: number;
  /** Where logs may lie that go into the archive. */
  readonly staging: string;
  readonly #private: PrivateDirectory;
  readonly #file: ArchiveFile;
  readonly #tar: TarWriter;
  readonly #sync: boolean;
  readonly #target: ArchiveTarget;
  readonly #extras: ArchiveExtras;
  readonly #signal: AbortSignal | undefined;
  readonly #abort = (): void => this.#tar.abort();
  readonly #images = new Map<string, ManifestEntry>();
  #queue: Promise<void>;
  #failure: unknown;
  #finished = false;
  #sizeBytes = 0;

  constructor(target: ArchiveTarget, extras: ArchiveExtras, sync: boolean, signal: AbortSignal | undefined) {
    this.#target = target;
    this.#extras = extras;
    this.#sync = sync;
    this.directory = target.file;
    // Beside the archive: what has room for the one has room for the other.
    const parent = target.file === kStandardOutput ? temporaryDirectory() : dirname(target.file);
    this.#private = new PrivateDirectory(parent, 'staging');
    this.staging = this.#private.path;
    this.fd = openSync(this.staging, 'r');
    try {
      this.#file = new ArchiveFile(target.file);
    } catch (error) {
      closeSync(this.fd);
      this.#private[Symbol.dispose]();
      throw error;
    }
    this.#tar = new TarWriter(this.#file.sink, target.compression);
    this.#signal = signal;
    signal?.addEventListener('abort', this.#abort, { once: true });
    // checkpointctl asks for this entry.
    this.#queue = this.#tar.addDirectory({ name: member.images });
    this.#queue.catch((error: unknown) => (this.#failure = error));
  }

  write(file: OutputFile): void {
    this.#images.set(file.name, manifestEntry(file.bytes));
    this.#queue = this.#queue.then(() => this.#tar.addBytes({ name: `${member.images}/${file.name}` }, file.bytes));
    // Told by commit, which comes in any case or is not needed any more.
    this.#queue.catch((error: unknown) => (this.#failure ??= error));
  }

  addPageFiles(files: readonly PageFile[]): void {
    for (const file of files) this.#images.set(file.name, pageFileEntry(file));
  }

  /** Postcondition: the archive is complete under its name and on the disk, or nothing of it is there. */
  async commit(inventory: OutputFile, besides: readonly OutputFile[]): Promise<void> {
    try {
      await this.#queue;
      // The log grows on: what it has by now.
      const log = join(this.staging, 'dump.log');
      const logText = existsSync(log) ? readFileSync(log) : undefined;
      const staged = readdirSync(this.staging).filter((name) => name !== 'dump.log');
      for (const name of staged) await this.#addStaged(`${member.images}/${name}`, name, staged);
      this.#images.set(inventory.name, manifestEntry(inventory.bytes));
      await this.#addBytes(`${member.images}/${kManifestName}`, formatManifest({ files: this.#images }));
      for (const file of [...this.#extras.files, ...besides]) await this.#addBytes(file.name, file.bytes);
      if (logText !== undefined) await this.#addBytes(member.dumpLog, logText);
      if (this.#extras.rootfs !== undefined) {
        const deleted = await this.#extras.rootfs(join(this.staging, member.rootfsDiff));
        await this.#addStaged(member.rootfsDiff, member.rootfsDiff, [member.rootfsDiff]);
        await this.#addBytes(member.deletedFiles, Buffer.from(JSON.stringify(deleted)));
      }
      await this.#addBytes(`${member.images}/${inventory.name}`, inventory.bytes);
      // The last member says that all the others are there.
      await this.#addBytes(member.manifest, formatManifest({ files: this.#tar.entries }));
      await this.#tar.finish();
      this.#signal?.throwIfAborted();
      this.#finished = true;
      this.#sizeBytes = this.#tar.writtenBytes;
      this.#file.commit(this.#sync);
    } catch (error) {
      if (this.#signal?.aborted === true) {
        throw new StasisError({
          code: 'ENVIRONMENT',
          message: `cannot write the archive ${this.directory}: interrupted by a signal`,
          subject: { path: this.directory },
          hint: 'nothing of it is there, and the container runs on',
          cause: error,
        });
      }
      const cause = this.#failure ?? error;
      if (cause instanceof StasisError) throw cause;
      throw fileError(`cannot write the archive ${this.directory}`, this.directory, cause);
    }
  }

  /** Of all contents, before compression. */
  sizeBytes(): number {
    return this.#sizeBytes;
  }

  [Symbol.dispose](): void {
    this.#signal?.removeEventListener('abort', this.#abort);
    if (!this.#finished) this.#tar.abort();
    this.#file[Symbol.dispose]();
    closeSync(this.fd);
    this.#private[Symbol.dispose]();
  }

  async #addBytes(name: string, bytes: Uint8Array): Promise<void> {
    await this.#tar.addBytes({ name }, bytes);
  }

  /** A staged file gives its disk space back while it goes in. */
  async #addStaged(memberName: string, name: string, all: readonly string[]): Promise<void> {
    const path = join(this.staging, name);
    const total = all.reduce((sum, one) => sum + sizeOf(join(this.staging, one)), this.#tar.writtenBytes);
    const giveBack = givingBack();
    await this.#tar.addFile({ name: memberName }, path, {
      writable: true,
      afterPiece: (fd, offset, lengthBytes) => {
        giveBack(fd, offset, lengthBytes);
        this.#target.onProgress?.(this.#tar.writtenBytes, Math.max(total, this.#tar.writtenBytes));
      },
    });
    rmSync(path);
  }
}

/** Disk space of what has been read, where the file system can. */
export function givingBack(): AfterPiece {
  const native = nativeBinding();
  let canPunch = true;
  return (fd, offset, lengthBytes) => {
    if (canPunch) canPunch = native.punchHole(fd, offset, lengthBytes);
  };
}

function sizeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.size ?? 0;
}

/** For what has no place of its own. */
export function temporaryDirectory(): string {
  const given = process.env['TMPDIR'] ?? '';
  // Not /tmp: that is memory on many machines.
  return given.startsWith('/') ? given : '/var/tmp';
}
