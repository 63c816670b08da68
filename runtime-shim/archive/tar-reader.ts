// A tar file as a stream of members, from whoever it may come: its lengths are
// bounded before anything is done with them, and what is malformed, cut short
// or padded without end is refused.
import { constants, createReadStream } from 'node:fs';
import { open } from 'node:fs/promises';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGunzip } from 'node:zlib';
import { extract, type Header } from 'tar-stream';
import { FormatError } from '../../oci-spec/json.js';
import { StasisError, errnoCode, fileError } from '../errors/index.js';
import { compressionOf, Meter } from './compression.js';
import { decompressZstd } from './zstd-frames.js';

export type MemberKind = 'file' | 'directory' | 'symlink' | 'link' | 'device' | 'fifo';

export interface DeviceNumber {
  readonly type: 'c' | 'b';
  readonly major: number;
  readonly minor: number;
}

export interface Member {
  /** As it stands in the archive. */
  readonly name: string;
  readonly kind: MemberKind;
  readonly sizeBytes: number;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtime: Date;
  readonly linkTarget: string;
  /** Extended attributes. */
  readonly attributes: ReadonlyMap<string, Buffer>;
  readonly device: DeviceNumber | undefined;
  /** Whose major and minor number are zero: how an overlay says "deleted". */
  readonly isWhiteout: boolean;
}

export interface ReadLimits {
  /** Of all contents together. */
  readonly totalBytes: number;
  readonly members: number;
}

/** Header, padding and the end of an archive; more is not there for a reason. */
const kSlackBytes = 16 << 20;
const kHeaderBytes = 8192;
const kBlock = 512;

/**
 * Calls `take` for each member, in order; it must read the content to its end, or return without touching it.
 * Throws ARCHIVE_CORRUPT, whatever is wrong; errors of `take` as they are.
 */
export async function readTar(
  source: Readable,
  limits: ReadLimits,
  take: (member: Member, content: AsyncIterable<Buffer>) => Promise<void>,
  label = 'the archive',
): Promise<void> {
  const parser = extract();
  keepAttributes(parser);
  let declaredBytes = 0;
  let members = 0;
  let tail: Buffer = Buffer.alloc(0);
  const meter = new Meter((chunk) => {
    if (meter.bytes > declaredBytes + members * (kHeaderBytes + kBlock) + kSlackBytes)
      throw corrupt(label, 'it goes on without end after its members');
    tail =
      chunk.length >= 2 * kBlock ? chunk.subarray(-2 * kBlock) : Buffer.concat([tail, chunk]).subarray(-2 * kBlock);
  });
  let failure: unknown;
  const feeding = pipeline(source, meter, parser as unknown as NodeJS.WritableStream).catch((error: unknown) => {
    failure ??= error;
  });
  try {
    for await (const entry of parser) {
      const header = entry.header;
      members += 1;
      if (members > limits.members) throw corrupt(label, `it has more than ${limits.members} members`);
      const one = readHeader(header as TarHeader, label);
      if (one.kind === 'file') declaredBytes += one.sizeBytes;
      for (const [name, value] of one.attributes) declaredBytes += name.length + value.length;
      if (declaredBytes > limits.totalBytes) {
        throw corrupt(
          label,
          `with member ${quoted(one.name)} its contents come to ${declaredBytes} bytes, and at most ${limits.totalBytes} are allowed`,
          'see that there is room, or raise --max-bytes',
        );
      }
      await take(one, entry as AsyncIterable<Buffer>);
      entry.resume();
    }
  } catch (error) {
    // What `take` says is the cause; what the parser says comes from the stream, see below.
    failure = error instanceof StasisError || failure === undefined ? error : failure;
    source.destroy();
    parser.destroy();
  }
  await feeding;
  if (failure !== undefined) throw explained(failure, label);
  if (members === 0) throw corrupt(label, 'it has no members');
  if (tail.length < 2 * kBlock || tail.some((byte) => byte !== 0)) throw corrupt(label, 'it ends too early');
}

/** What the parser really gives; its types promise what an archive need not have. */
type TarHeader = Partial<Omit<Header, 'type' | 'pax' | 'name'>> & {
  readonly name: string;
  readonly type?: string | null;
  readonly pax?: (Record<string, string> & { readonly [kAttributes]?: ReadonlyMap<string, Buffer> }) | null;
};

function readHeader(header: TarHeader, label: string): Member {
  const { name, type } = header;
  const size = header.size ?? 0;
  const refuse = (problem: string): never => {
    throw corrupt(label, `member ${quoted(name)} ${problem}`);
  };
  const kinds: Partial<Record<string, MemberKind>> = {
    file: 'file',
    'contiguous-file': 'file',
    directory: 'directory',
    symlink: 'symlink',
    link: 'link',
    'character-device': 'device',
    'block-device': 'device',
    fifo: 'fifo',
  };
  const kind = type === null || type === undefined ? undefined : kinds[type];
  if (kind === undefined) return refuse('is of an unknown kind');
  // The parser makes -0 of a size of -1.
  if (!Number.isSafeInteger(size) || size < 0 || Object.is(size, -0)) refuse(`has an impossible size: ${size}`);
  if (kind !== 'file' && size !== 0) refuse('has content, and is no plain file');
  for (const key of Object.keys(header.pax ?? {})) {
    if (key.startsWith('GNU.sparse')) refuse('is a sparse file, which no checkpoint has');
  }
  const paxSize = header.pax?.['size'];
  if (paxSize !== undefined && paxSize !== String(size)) refuse(`has an impossible size: ${paxSize}`);
  const attributes = header.pax?.[kAttributes] ?? new Map<string, Buffer>();
  for (const [attribute, value] of attributes) {
    const isName = attribute !== '' && !attribute.includes('\0') && !attribute.includes('\ufffd');
    if (!isName || Buffer.byteLength(attribute) > 255 || value.length > 65536)
      refuse('has an extended attribute that no kernel takes');
  }
  // Numbers that have no room in the header; the parser leaves them there.
  const number = (key: string, plain: number | undefined): number => {
    const text = header.pax?.[key];
    if (text === undefined) return plain ?? 0;
    return /^\d{1,10}$/.test(text) && Number(text) < 2 ** 32 - 1 ? Number(text) : refuse(`has an impossible ${key}`);
  };
  return {
    name,
    kind,
    sizeBytes: size,
    mode: (header.mode ?? 0) & 0o7777,
    uid: number('uid', header.uid),
    gid: number('gid', header.gid),
    mtime: header.mtime ?? new Date(0),
    linkTarget: header.linkname ?? '',
    attributes,
    device:
      kind === 'device'
        ? {
            type: type === 'character-device' ? 'c' : 'b',
            major: header.devmajor ?? 0,
            minor: header.devminor ?? 0,
          }
        : undefined,
    isWhiteout: type === 'character-device' && header.devmajor === 0 && header.devminor === 0,
  };
}

const kAttributes = Symbol('extended attributes');
/** The name of a pax record by which star, GNU tar and Go's archive/tar (podman, containerd) write one. */
export const kAttributeRecord = 'SCHILY.xattr.';

/** The parser takes every record for UTF-8, and attributes are bytes: they are read before it does. */
function keepAttributes(parser: object): void {
  const inner = parser as {
    _header: { readonly type: string };
    _pax: { [kAttributes]?: ReadonlyMap<string, Buffer> } | null;
    _decodeLongHeader: (block: Buffer) => void;
  };
  const decode = inner._decodeLongHeader;
  inner._decodeLongHeader = function (block: Buffer): void {
    decode.call(this, block);
    if (this._header.type === 'pax-header' && this._pax !== null)
      this._pax = { ...this._pax, [kAttributes]: attributeRecords(block) };
  };
}

/** Records are "LENGTH KEY=VALUE\n", LENGTH counting all of it (pax(1)). */
function attributeRecords(block: Buffer): Map<string, Buffer> {
  const found = new Map<string, Buffer>();
  for (let at = 0; at < block.length;) {
    const space = block.indexOf(' ', at);
    const length = space < 0 ? NaN : Number(block.toString('latin1', at, space));
    const equals = block.indexOf('=', space);
    // The parser stops here, too.
    if (!Number.isInteger(length) || length <= 0 || at + length > block.length || equals < 0 || equals >= at + length)
      break;
    const key = block.toString('utf8', space + 1, equals);
    if (key.startsWith(kAttributeRecord))
      found.set(key.slice(kAttributeRecord.length), Buffer.from(block.subarray(equals + 1, at + length - 1)));
    at += length;
  }
  return found;
}

/** The decompressed bytes of a file. The caller reads them to the end or destroys them. */
export async function openArchive(path: string, onBytes?: (count: number) => void): Promise<Readable> {
  let compression;
  try {
    // Not waiting for whoever might write into a named pipe.
    const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      if (!(await file.stat()).isFile()) {
        throw new StasisError({
          code: 'ARCHIVE_CORRUPT',
          message: `cannot read ${path}: it is not a plain file`,
          subject: { path },
          hint: 'give the path of an archive',
        });
      }
      const first = Buffer.alloc(6);
      const { bytesRead } = await file.read(first, 0, first.length, 0);
      if (bytesRead === 0) throw corrupt(path, 'it is empty');
      compression = compressionOf(first.subarray(0, bytesRead));
    } finally {
      await file.close();
    }
  } catch (error) {
    if (errnoCode(error) === 'ENOENT') {
      throw new StasisError({
        code: 'IMAGE_MISSING',
        message: `cannot read the archive ${path}: there is no such file`,
        subject: { path },
        hint: 'give the path of an archive',
      });
    }
    throw fileError(`cannot read the archive ${path}`, path, error);
  }
  const raw = createReadStream(path, { highWaterMark: 1 << 20 });
  if (onBytes !== undefined) raw.on('data', (chunk) => onBytes(chunk.length));
  if (compression === 'none') return raw;
  if (compression === 'zstd') {
    const frames = Readable.from(decompressZstd(raw), { objectMode: false, highWaterMark: 1 << 20 });
    frames.on('close', () => raw.destroy());
    return frames;
  }
  const gunzip = createGunzip({ chunkSize: 1 << 18 });
  raw.on('error', (error) => gunzip.destroy(error));
  gunzip.on('close', () => raw.destroy());
  return raw.pipe(gunzip);
}

export function corrupt(label: string, problem: string, hint = 'use another copy of the archive'): StasisError {
  return new StasisError({
    code: 'ARCHIVE_CORRUPT',
    message: `cannot read ${label}: ${problem}`,
    subject: label.startsWith('/') ? { path: label } : {},
    hint,
  });
}

function explained(error: unknown, label: string): unknown {
  if (error instanceof StasisError) return error;
  if (error instanceof FormatError) return corrupt(label, error.message);
  const { code, errno, message } = error as NodeJS.ErrnoException;
  if (typeof errno === 'number' && errno < 0 && code?.startsWith('E') === true && code !== 'ERR_')
    return fileError(`cannot read ${label}`, label, error);
  if (code?.startsWith('Z_') === true || code?.startsWith('ZSTD_') === true || code?.startsWith('ERR_ZSTD') === true) {
    return corrupt(label, `its compressed data is damaged or cut short (${message})`);
  }
  if (/Unexpected end of data|premature/i.test(message)) return corrupt(label, 'it ends in the middle of a member');
  return corrupt(label, message);
}

export function quoted(name: string): string {
  return JSON.stringify(name.length > 200 ? `${name.slice(0, 200)}...` : name);
}
