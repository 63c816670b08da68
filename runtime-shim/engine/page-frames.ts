// Page files, plain and compressed ("pages-1.img.zst", "pages-1.img.lz4"): which
// there is, how much it holds, and a few bytes of it. A compressed file is frames,
// then their index: the seekable format of zstd's contrib/, for both codecs. The
// core decodes what a restore fills memory with; here it is the vdso alone.
import { zstdDecompressSync } from 'node:zlib';
import { StasisError } from '../errors/index.js';
import type { ImageSetReader } from './image-set.js';

const suffixes = ['', '.lz4', '.zst'] as const;
const kIndexMagic = 0x8f92eab1;
const kSkippableMagic = 0x184d2a5e;
const kLz4Magic = 0x184d2204;
const kHeaderBytes = 8;
const kFooterBytes = 9;
const kPageBytes = 4096;
const kMaximalFrames = 1 << 22;
const kMaximalFrameBytes = 1 << 20;

/** The one that is there; the plain name if none is. */
export function pageFileName(set: ImageSetReader, pagesId: number): string {
  const plain = `pages-${pagesId}.img`;
  return suffixes.map((suffix) => plain + suffix).find((name) => set.sizeBytes(name) !== undefined) ?? plain;
}

export const isCompressedPageFile = (name: string): boolean => /^(parent\/)*pages-\d+\.img\.(lz4|zst)$/.test(name);

/** Bytes of pages that the file stands for; undefined if there is no such file. Throws IMAGE_CORRUPT. */
export function pageFileBytes(set: ImageSetReader, name: string): number | undefined {
  if (!isCompressedPageFile(name)) return set.sizeBytes(name);
  const frames = readIndex(set, name);
  const last = frames?.at(-1);
  return frames === undefined ? undefined : last === undefined ? 0 : last.contentOffset + last.contentBytes;
}

/** undefined: there is no such file, or it is shorter. Throws IMAGE_CORRUPT. */
export function readPages(
  set: ImageSetReader,
  name: string,
  offset: number,
  lengthBytes: number,
): Uint8Array | undefined {
  if (!isCompressedPageFile(name)) return set.rawRange(name, offset, lengthBytes);
  const parts: Uint8Array[] = [];
  for (const frame of readIndex(set, name) ?? []) {
    const from = Math.max(offset, frame.contentOffset);
    const to = Math.min(offset + lengthBytes, frame.contentOffset + frame.contentBytes);
    if (from >= to) continue;
    const bytes = set.rawRange(name, frame.fileOffset, frame.compressedBytes) ?? new Uint8Array(0);
    parts.push(decode(name, bytes, frame).subarray(from - frame.contentOffset, to - frame.contentOffset));
  }
  const whole = Buffer.concat(parts);
  return whole.length === lengthBytes ? whole : undefined;
}

interface Frame {
  readonly fileOffset: number;
  readonly compressedBytes: number;
  readonly contentOffset: number;
  readonly contentBytes: number;
}

function readIndex(set: ImageSetReader, name: string): readonly Frame[] | undefined {
  const size = set.sizeBytes(name);
  if (size === undefined) return undefined;
  const part = (offset: number, lengthBytes: number): Buffer => {
    const bytes = set.rawRange(name, offset, lengthBytes);
    if (bytes?.length !== lengthBytes) throw corrupt(name, 'ends too early');
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  };
  if (size < kHeaderBytes + kFooterBytes) throw corrupt(name, 'has no index');
  const footer = part(size - kFooterBytes, kFooterBytes);
  if (footer.readUInt32LE(5) !== kIndexMagic) throw corrupt(name, 'has no index at its end');
  const count = footer.readUInt32LE(0);
  const entryBytes = (footer[4]! & 0x80) === 0 ? 8 : 12;
  const indexBytes = kHeaderBytes + count * entryBytes + kFooterBytes;
  if (count > kMaximalFrames) throw corrupt(name, `has an index of ${count} frames, more than ${kMaximalFrames}`);
  if (indexBytes > size) throw corrupt(name, `has an index of ${count} frames, more than its ${size} bytes hold`);
  const index = part(size - indexBytes, indexBytes);
  if (index.readUInt32LE(0) !== kSkippableMagic || index.readUInt32LE(4) !== indexBytes - kHeaderBytes)
    throw corrupt(name, 'has an index that does not begin where it should');
  const frames: Frame[] = [];
  let fileOffset = 0;
  let contentOffset = 0;
  for (let at = kHeaderBytes; at < indexBytes - kFooterBytes; at += entryBytes) {
    const compressedBytes = index.readUInt32LE(at);
    const contentBytes = index.readUInt32LE(at + 4);
    if (contentBytes === 0 || contentBytes > kMaximalFrameBytes || contentBytes % kPageBytes !== 0)
      throw corrupt(
        name,
        `has a frame of ${contentBytes} bytes, which are no pages or more than ${kMaximalFrameBytes}`,
      );
    if (compressedBytes === 0 || compressedBytes > 2 * kMaximalFrameBytes)
      throw corrupt(name, `has a frame that takes ${compressedBytes} bytes`);
    frames.push({ fileOffset, compressedBytes, contentOffset, contentBytes });
    fileOffset += compressedBytes;
    contentOffset += contentBytes;
  }
  if (fileOffset !== size - indexBytes)
    throw corrupt(name, `has frames of ${fileOffset} bytes, and ${size - indexBytes} bytes of room for them`);
  return frames;
}

function decode(name: string, bytes: Uint8Array, frame: Frame): Uint8Array {
  try {
    const content = name.endsWith('.zst')
      ? zstdDecompressSync(bytes, { maxOutputLength: frame.contentBytes })
      : lz4Frame(Buffer.from(bytes), frame.contentBytes);
    if (content.length === frame.contentBytes) return content;
  } catch (error) {
    throw corrupt(name, `is damaged at ${frame.fileOffset}`, error);
  }
  throw corrupt(name, `is damaged at ${frame.fileOffset}`);
}

/** lz4's frame format, without its checksums: the core checks those. Throws RangeError. */
function lz4Frame(frame: Buffer, contentBytes: number): Uint8Array {
  if (frame.readUInt32LE(0) !== kLz4Magic) throw new RangeError('no frame');
  const flags = frame[4]!;
  // after the magic: flags, block size, [content size], [dictionary], checksum of the header
  let at = 7 + ((flags & 8) === 0 ? 0 : 8) + ((flags & 1) === 0 ? 0 : 4);
  const to = Buffer.alloc(contentBytes);
  let done = 0;
  for (let length = frame.readUInt32LE(at); length !== 0; length = frame.readUInt32LE(at)) {
    const plain = length >>> 31 !== 0;
    length &= 0x7fffffff;
    const block = frame.subarray(at + 4, at + 4 + length);
    if (block.length !== length) throw new RangeError('a block ends too early');
    if (!plain) done = lz4Block(block, to, done);
    else if (block.copy(to, done) === length) done += length;
    else throw new RangeError('more content than room');
    at += 4 + length + ((flags & 16) === 0 ? 0 : 4);
  }
  return to.subarray(0, done);
}

/** Appends to `to` at `done`; gives the new end. */
function lz4Block(block: Buffer, to: Buffer, start: number): number {
  let at = 0;
  let done = start;
  const next = (): number => {
    const byte = block[at];
    if (byte === undefined) throw new RangeError('a block ends too early');
    at += 1;
    return byte;
  };
  const lengthFrom = (nibble: number): number => {
    let length = nibble;
    for (let more = nibble === 15; more;) {
      const byte = next();
      length += byte;
      more = byte === 255;
    }
    return length;
  };
  while (at < block.length) {
    const token = next();
    const literals = lengthFrom(token >> 4);
    if (at + literals > block.length || done + literals > to.length) throw new RangeError('literals');
    block.copy(to, done, at, at + literals);
    at += literals;
    done += literals;
    if (at === block.length) break; // the last sequence has no match
    const distance = next() | (next() << 8);
    const length = lengthFrom(token & 15) + 4;
    if (distance === 0 || distance > done || done + length > to.length) throw new RangeError('match');
    for (let i = 0; i < length; i += 1, done += 1) to[done] = to[done - distance]!;
  }
  return done;
}

function corrupt(name: string, what: string, cause?: unknown): StasisError {
  return new StasisError({
    code: 'IMAGE_CORRUPT',
    message: `cannot read the images: "${name}" ${what}`,
    subject: { image: name },
    hint: 'use another copy of the checkpoint',
    ...(cause === undefined ? {} : { cause }),
  });
}
