// How an archive is compressed: told by its first bytes, never by its name;
// when it is written, by the name.
import { Transform, type TransformCallback } from 'node:stream';
import { constants, createGzip, createZstdCompress, type Gzip, type ZstdCompress } from 'node:zlib';
import { StasisError } from '../errors/index.js';

export type Compression = 'none' | 'gzip' | 'zstd';
export const compressions: readonly Compression[] = ['none', 'gzip', 'zstd'];

/** Throws for names that promise what is not written. */
export function compressionOfName(name: string): Compression {
  if (/\.(zst|tzst)$/.test(name)) return 'zstd';
  if (/\.(gz|tgz)$/.test(name)) return 'gzip';
  const other = /\.(xz|txz|bz2|tbz|tbz2|lz4|lzma|zip)$/.exec(name);
  if (other === null) return 'none';
  throw new StasisError({
    code: 'ARCHIVE_UNSUPPORTED',
    message: `cannot write ${name}: only .tar, .tar.zst and .tar.gz are written, and ${other[0]} says otherwise`,
    subject: { path: name },
    hint: 'choose another name, or say --compress',
  });
}

/** undefined: none is needed. Fast levels, because a container may stand still meanwhile. */
export function compressor(compression: Compression): Gzip | ZstdCompress | undefined {
  if (compression === 'gzip') return createGzip({ level: 1, chunkSize: 1 << 18 });
  if (compression === 'none') return undefined;
  return createZstdCompress({
    chunkSize: 1 << 18,
    params: { [constants.ZSTD_c_compressionLevel]: 1, [constants.ZSTD_c_checksumFlag]: 1 },
  });
}

/** By content. Throws for kinds that are known and not read. */
export function compressionOf(firstBytes: Uint8Array): Compression {
  const starts = (...bytes: readonly number[]): boolean => bytes.every((byte, at) => firstBytes[at] === byte);
  if (starts(0x1f, 0x8b)) return 'gzip';
  if (starts(0x28, 0xb5, 0x2f, 0xfd)) return 'zstd';
  // A frame to be skipped, which parallel compressors begin with.
  if ((firstBytes[0]! & 0xf0) === 0x50 && firstBytes[1] === 0x2a && firstBytes[2] === 0x4d && firstBytes[3] === 0x18)
    return 'zstd';
  for (const [kind, magic] of [
    ['xz', [0xfd, 0x37, 0x7a, 0x58, 0x5a]],
    ['bzip2', [0x42, 0x5a, 0x68]],
    ['lz4', [0x04, 0x22, 0x4d, 0x18]],
  ] as const) {
    if (!starts(...magic)) continue;
    throw new StasisError({
      code: 'ARCHIVE_UNSUPPORTED',
      message: `cannot read the archive: it is compressed with ${kind}, and only gzip, zstd and none are read`,
      hint: `decompress it first (${kind} -d)`,
    });
  }
  return 'none';
}

/** Counts and hashes what passes. */
export class Meter extends Transform {
  bytes = 0;
  readonly #onChunk: (chunk: Buffer) => void;

  constructor(onChunk: (chunk: Buffer) => void = () => undefined) {
    super();
    this.#onChunk = onChunk;
  }

  override _transform(chunk: Buffer, _encoding: BufferEncoding, callback: TransformCallback): void {
    this.bytes += chunk.length;
    try {
      this.#onChunk(chunk);
    } catch (error) {
      callback(error as Error);
      return;
    }
    callback(null, chunk);
  }
}
