// A tar file as a stream: a member is read, hashed and compressed in pieces, so
// that memory stays small whatever is written.
import { createHash, type Hash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { pipeline } from 'node:stream/promises';
import type { Writable } from 'node:stream';
import { pack, type Header, type Pack } from 'tar-stream';
import { compressor, Meter, type Compression } from './compression.js';
import type { ManifestEntry } from './manifest.js';

type NewHeader = Partial<Header> & Pick<Header, 'name'>;

const kPieceBytes = 1 << 20;

export interface NewMember {
  readonly name: string;
  readonly mode?: number;
  readonly uid?: number;
  readonly gid?: number;
  readonly mtime?: Date;
}

export interface NewLink extends NewMember {
  readonly type: 'symlink' | 'link';
  readonly target: string;
}

/** Of the file descriptor that is read: what lies before has been read and is in the archive's pipeline. */
export type AfterPiece = (fd: number, offset: number, lengthBytes: number) => void;

export interface AddFileOptions {
  readonly afterPiece?: AfterPiece;
  /** afterPiece makes holes. */
  readonly writable?: boolean;
}

export class TarWriter {
  /** Of the plain files, by name. */
  readonly entries = new Map<string, ManifestEntry>();
  readonly #pack: Pack = pack({ highWaterMark: kPieceBytes });
  readonly #done: Promise<void>;
  readonly #content: Meter;
  #failure: unknown;

  /** `onContent`: sees the tar file before it is compressed. */
  constructor(sink: Writable, compression: Compression, onContent?: (chunk: Buffer) => void) {
    this.#content = new Meter(onContent);
    const middle = compressor(compression);
    this.#done =
      middle === undefined
        ? pipeline(this.#pack, this.#content, sink)
        : pipeline(this.#pack, this.#content, middle, sink);
    this.#done.catch((error: unknown) => (this.#failure = error));
  }

  /** Uncompressed. */
  get writtenBytes(): number {
    return this.#content.bytes;
  }

  async addDirectory(directory: NewMember): Promise<void> {
    await this.#addEmpty({ ...header(directory, 0o700), type: 'directory', name: `${directory.name}/` });
  }

  async addLink(link: NewLink): Promise<void> {
    await this.#addEmpty({ ...header(link, 0o777), type: link.type, linkname: link.target });
  }

  async addBytes(file: NewMember, bytes: Uint8Array): Promise<void> {
    await this.#add(file, bytes.length, async (write) => {
      for (let at = 0; at < bytes.length; at += kPieceBytes) await write(bytes.subarray(at, at + kPieceBytes));
    });
  }

  /** Throws if the file does not have the size that it had when it was opened. */
  async addFile(file: NewMember, path: string, options: AddFileOptions = {}): Promise<void> {
    const source = await open(path, options.writable === true ? 'r+' : 'r');
    try {
      const { size } = await source.stat();
      await this.#add(file, size, async (write) => {
        for (let at = 0; at < size;) {
          const piece = Buffer.allocUnsafe(Math.min(kPieceBytes, size - at));
          const { bytesRead } = await source.read(piece, 0, piece.length, at);
          if (bytesRead === 0) throw new Error(`${path} became shorter while it was read`);
          await write(piece.subarray(0, bytesRead));
          options.afterPiece?.(source.fd, at, bytesRead);
          at += bytesRead;
        }
      });
    } finally {
      await source.close();
    }
  }

  /** A member whose content comes in pieces of `sizeBytes` together. */
  async addStream(file: NewMember, sizeBytes: number, content: AsyncIterable<Uint8Array>): Promise<void> {
    await this.#add(file, sizeBytes, async (write) => {
      for await (const piece of content) await write(piece);
    });
  }

  /** Postcondition: every byte has been taken by the sink, and the sink is closed. */
  async finish(): Promise<void> {
    this.#pack.finalize();
    await this.#done;
  }

  /** Ends the stream as failed; the sink is destroyed. */
  abort(): void {
    this.#pack.destroy();
  }

  async #add(
    file: NewMember,
    sizeBytes: number,
    fill: (write: (piece: Uint8Array) => Promise<void>) => Promise<void>,
  ): Promise<void> {
    const hash: Hash = createHash('sha256');
    let taken = 0;
    await this.#entry({ ...header(file, 0o600), type: 'file', size: sizeBytes }, async (entry) => {
      await fill(async (piece) => {
        hash.update(piece);
        taken += piece.length;
        if (!entry.write(piece)) await this.#drained(entry);
      });
    });
    if (taken !== sizeBytes) throw new Error(`${file.name} has ${taken} bytes instead of ${sizeBytes}`);
    this.entries.set(file.name, { sizeBytes, sha256: hash.digest('hex') });
  }

  async #addEmpty(headers: NewHeader): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#pack.entry(headers, (error) => (error ? reject(error) : resolve()));
    });
    this.#refuseBroken();
  }

  async #entry(headers: NewHeader, fill: (entry: Writable) => Promise<void>): Promise<void> {
    this.#refuseBroken();
    await new Promise<void>((resolve, reject) => {
      const entry = this.#pack.entry(headers, (error) =>
        error ? reject(this.#failure ?? error) : resolve(),
      ) as unknown as Writable;
      // Reported through the callback.
      entry.on('error', () => undefined);
      fill(entry).then(
        () => entry.end(),
        (error: unknown) => {
          reject(error as Error);
          entry.destroy(error as Error);
        },
      );
    });
  }

  async #drained(entry: Writable): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const settle = (action: () => void) => (): void => {
        entry.removeListener('drain', onDrain);
        entry.removeListener('close', onClose);
        action();
      };
      const onDrain = settle(resolve);
      // A microtask later the pipeline's own failure is known, which says more.
      const onClose = settle(() =>
        setImmediate(() => reject((this.#failure as Error) ?? new Error('the archive was closed'))),
      );
      entry.on('drain', onDrain);
      entry.on('close', onClose);
    });
  }

  #refuseBroken(): void {
    if (this.#failure !== undefined) throw this.#failure as Error;
  }
}

function header(member: NewMember, defaultMode: number): NewHeader {
  return {
    name: member.name,
    mode: member.mode ?? defaultMode,
    uid: member.uid ?? 0,
    gid: member.gid ?? 0,
    mtime: member.mtime ?? new Date(),
  };
}
