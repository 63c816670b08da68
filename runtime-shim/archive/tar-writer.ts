// A tar file as a stream: a member is read, hashed and compressed in pieces, so
// that memory stays small whatever is written.
import { createHash, type Hash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { pipeline } from 'node:stream/promises';
import type { Writable } from 'node:stream';
import { pack, type Header, type Pack } from 'tar-stream';
import { compressor, Meter, type Compression } from './compression.js';
import type { ManifestEntry } from './manifest.js';
import { kAttributeRecord } from './tar-reader.js';

type NewHeader = Partial<Header> & Pick<Header, 'name'>;

const kPieceBytes = 1 << 20;

export interface NewMember {
  readonly name: string;
  readonly mode?: number;
  readonly uid?: number;
  readonly gid?: number;
  readonly mtime?: Date;
  /** Extended attributes. */
  readonly attributes?: ReadonlyMap<string, Buffer>;
}

export interface NewNode extends NewMember {
  readonly type: 'fifo' | 'c' | 'b';
  readonly major: number;
  readonly minor: number;
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
    const named = { ...directory, name: `${directory.name}/` };
    await this.#addEmpty({ ...this.#header(named, 0o700), type: 'directory' });
  }

  async addLink(link: NewLink): Promise<void> {
    await this.#addEmpty({ linkname: link.target, ...this.#header(link, 0o777, link.target), type: link.type });
  }

  /** Preconditions: the numbers of a device have a place in a header (hasPlaceForNode). */
  async addNode(node: NewNode): Promise<void> {
    const type = ({ fifo: 'fifo', c: 'character-device', b: 'block-device' } as const)[node.type];
    await this.#addEmpty({ ...this.#header(node, 0o600), type, devmajor: node.major, devminor: node.minor });
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
    await this.#entry({ ...this.#header(file, 0o600), type: 'file', size: sizeBytes }, async (entry) => {
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

  /**
   * What the library cannot say in a header goes before it, as pax records: attributes, which are bytes, and large
   * owners. It writes the header that follows with a name of no meaning, as it does itself.
   */
  #header(member: NewMember, defaultMode: number, linkTarget?: string): NewHeader {
    const plain = header(member, defaultMode);
    const records = [...(member.attributes ?? [])].map(([name, value]) => record(`${kAttributeRecord}${name}`, value));
    for (const key of ['uid', 'gid'] as const) {
      if (plain[key]! > kMaxOctal) records.push(record(key, Buffer.from(String(plain[key]))));
    }
    if (records.length === 0) return plain;
    records.push(record('path', Buffer.from(member.name)));
    if (linkTarget !== undefined) records.push(record('linkpath', Buffer.from(linkTarget)));
    const body = Buffer.concat(records);
    this.#refuseBroken();
    this.#pack.push(Buffer.concat([paxHeader(body.length), body, Buffer.alloc(-body.length & 511)]));
    const owner = { uid: Math.min(plain.uid!, kMaxOctal), gid: Math.min(plain.gid!, kMaxOctal) };
    return { ...plain, ...owner, name: 'PaxHeader', ...(linkTarget === undefined ? {} : { linkname: 'PaxHeader' }) };
  }

  #refuseBroken(): void {
    if (this.#failure !== undefined) throw this.#failure as Error;
  }
}

/** Of the library's fields for owners and devices: six octal digits. */
const kMaxOctal = 0o777777;

export function hasPlaceForNode(node: { readonly major: number; readonly minor: number }): boolean {
  return node.major <= kMaxOctal && node.minor <= kMaxOctal;
}

/** "LENGTH KEY=VALUE\n", where LENGTH counts itself (pax(1)). */
function record(key: string, value: Buffer): Buffer {
  const rest = Buffer.byteLength(` ${key}=`) + value.length + 1;
  let length = rest + String(rest).length;
  length = rest + String(length).length;
  return Buffer.concat([Buffer.from(`${length} ${key}=`), value, Buffer.from('\n')]);
}

/** ustar, type "x". */
function paxHeader(sizeBytes: number): Buffer {
  const block = Buffer.alloc(512);
  block.write('PaxHeader', 0, 'latin1');
  const octal = (value: number, at: number, digits: number): void =>
    void block.write(value.toString(8).padStart(digits, '0'), at, 'latin1');
  octal(0o600, 100, 7);
  octal(0, 108, 7);
  octal(0, 116, 7);
  octal(sizeBytes, 124, 11);
  octal(0, 136, 11);
  block.write('x', 156, 'latin1');
  block.write('ustar\x0000', 257, 'latin1');
  block.fill(' ', 148, 156);
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return block;
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
