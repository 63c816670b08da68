// Where an archive goes: a file that appears under its name when it is complete
// and on the disk, or standard output.
import { closeSync, constants, fstatSync, fsyncSync, openSync, renameSync, rmSync, write } from 'node:fs';
import { open } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { Writable } from 'node:stream';
import { errnoCode, fileError } from '../errors/index.js';
import { privateName, removeAbandoned } from './private-directory.js';

/** "-" */
export const kStandardOutput = '-';

export class ArchiveFile {
  readonly sink: DescriptorSink;
  readonly path: string;
  readonly #temporary: string | undefined;
  readonly #fd: number;
  #committed = false;

  /** `path`: absolute, or "-". */
  constructor(path: string) {
    this.path = path;
    if (path === kStandardOutput) {
      this.#fd = 1;
    } else {
      this.#temporary = join(dirname(path), privateName(basename(path)));
      try {
        removeAbandoned(dirname(path));
        // Readable for root only: it holds memory contents, so secrets.
        this.#fd = openSync(this.#temporary, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600);
      } catch (error) {
        throw fileError(`cannot write the archive ${path}`, path, error);
      }
    }
    this.sink = new DescriptorSink(this.#fd, path === kStandardOutput ? 'standard output' : path);
  }

  /** Precondition: the sink has finished. Postcondition: the archive is complete under its name, on the disk if `sync`. */
  commit(sync: boolean): void {
    if (this.#temporary === undefined) return;
    try {
      if (sync) fsyncSync(this.#fd);
      renameSync(this.#temporary, this.path);
      this.#committed = true;
      if (sync) syncDirectory(dirname(this.path));
    } catch (error) {
      throw fileError(`cannot complete the archive ${this.path}`, this.path, error);
    }
  }

  sizeBytes(): number {
    return this.#temporary === undefined ? 0 : fstatSync(this.#fd).size;
  }

  [Symbol.dispose](): void {
    if (this.#temporary === undefined) return;
    this.sink.leave(() => closeSync(this.#fd));
    if (!this.#committed) rmSync(this.#temporary, { force: true });
  }
}

/** Writes with write(2) to a descriptor of somebody else's, and never after it was told to leave it. */
class DescriptorSink extends Writable {
  readonly #fd: number;
  readonly #name: string;
  #writing = false;
  #whenIdle: (() => void) | undefined;

  constructor(fd: number, name: string) {
    super({ highWaterMark: 1 << 20 });
    this.#fd = fd;
    this.#name = name;
  }

  // Not synchronously: a reader that does not read must not keep us from hearing a signal.
  override _write(chunk: Buffer, encoding: BufferEncoding, callback: (error?: Error) => void): void {
    this.#writing = true;
    write(this.#fd, chunk, 0, chunk.length, null, (error, count) => {
      this.#writing = false;
      this.#whenIdle?.();
      if (this.destroyed) return;
      if (error === null && count === chunk.length) callback();
      else if (error === null) this._write(chunk.subarray(count), encoding, callback);
      // A pipe that somebody set to non-blocking: come back when its reader has read.
      else if (errnoCode(error) === 'EAGAIN') setTimeout(() => this._write(chunk, encoding, callback), kRetryMs);
      else callback(fileError(`cannot write the archive to ${this.#name}`, this.#name, error));
    });
  }

  /** A write that is under way ends first. */
  leave(then: () => void): void {
    this.destroy();
    if (this.#writing) this.#whenIdle = then;
    else then();
  }
}

const kRetryMs = 5;

export function syncDirectory(path: string): void {
  const fd = openSync(path, 'r');
  try {
    fsyncSync(fd);
  } catch (error) {
    // Some file systems have nothing to do for directories and say so.
    if (errnoCode(error) !== 'EINVAL') throw error;
  } finally {
    closeSync(fd);
  }
}

/** The same for a file, from its path. */
export async function syncFile(path: string): Promise<void> {
  const file = await open(path, 'r');
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}
