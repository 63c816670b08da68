// The bytes of one image file: magic numbers, then entries
//
//   +----------------+----------------+   +-----------+---------+---------------+
//   | common magic 4 | file magic 4   |   | size u32  | message | extra payload | ...
//   +----------------+----------------+   +-----------+---------+---------------+
//
// all little-endian. The payload's length comes from the message. No I/O.
import { imageCodec, type ImageMessageName, type ImageMessages } from '../codecs.js';
import type { PartialMessage } from '../protobuf/codec.js';
import { kNoBytes, newReader, newWriter } from '../protobuf/wire.js';
import { imageKinds, kCommonMagic, kServiceMagic, type ImageKind, type ImageKindName } from './magic.js';

export interface ImageEntry<Name extends ImageMessageName = ImageMessageName> {
  readonly message: ImageMessages[Name];
  readonly payload: Uint8Array;
}

/** Larger single messages are refused: an mm image of 1,000,000 VMAs stays below. */
export const kMaxEntryBytes = 256 * 1024 * 1024;

export class ImageFormatError extends Error {
  /** 'version' when the file is an image of another kind or format, 'corrupt' when its bytes do not add up. */
  readonly problem: 'version' | 'corrupt';
  constructor(problem: 'version' | 'corrupt', message: string) {
    super(message);
    this.problem = problem;
  }
}

export class ImageWriter {
  readonly #parts: Uint8Array[] = [];

  constructor(kind: ImageKindName) {
    const { envelope, magic }: ImageKind = imageKinds[kind];
    if (envelope !== 'single') this.#parts.push(u32(envelope === 'common' ? kCommonMagic : kServiceMagic));
    this.#parts.push(u32(magic));
  }

  add<Name extends ImageMessageName>(
    name: Name,
    message: PartialMessage<ImageMessages[Name]>,
    payload?: Uint8Array,
  ): void {
    // The size goes before the message, in the same bytes, when it is known.
    const writer = newWriter().fixed32(0);
    imageCodec().write(name, message, writer);
    const entry = writer.finish();
    putUint32(entry, entry.length - 4);
    this.#parts.push(entry);
    if (payload !== undefined) this.#parts.push(payload);
  }

  bytes(): Uint8Array {
    return Buffer.concat(this.#parts);
  }
}

/**
 * Reads all entries of an image file. `payloadLength` tells how many bytes
 * follow each message (0 where the kind has none).
 */
export function readImage(
  kindName: ImageKindName,
  bytes: Uint8Array,
  payloadLength: (message: never, rest: number) => number = () => 0,
): ImageEntry[] {
  const kind: ImageKind = imageKinds[kindName];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let offset = readMagic(kind, view);
  const reader = newReader(bytes);
  const entries: ImageEntry[] = [];
  while (offset < bytes.length) {
    if (offset + 4 > bytes.length) throw new ImageFormatError('corrupt', `ends inside a size field at byte ${offset}`);
    const size = view.getUint32(offset, true);
    offset += 4;
    if (size > kMaxEntryBytes || offset + size > bytes.length) {
      throw new ImageFormatError(
        'corrupt',
        `entry of ${size} bytes at byte ${offset} runs past the end (${bytes.length} bytes)`,
      );
    }
    const name = entries.length === 0 && kind.head !== undefined ? kind.head : kind.message;
    let message;
    try {
      reader.pos = offset;
      message = imageCodec().read(name, reader, offset + size);
    } catch (error) {
      throw new ImageFormatError('corrupt', `entry ${entries.length} is not a ${name}: ${(error as Error).message}`);
    }
    offset += size;
    const extra = payloadLength(message as never, bytes.length - offset);
    if (extra < 0 || offset + extra > bytes.length) {
      throw new ImageFormatError(
        'corrupt',
        `payload of ${extra} bytes at byte ${offset} runs past the end (${bytes.length} bytes)`,
      );
    }
    entries.push({ message, payload: extra === 0 ? kNoBytes : bytes.subarray(offset, offset + extra) });
    offset += extra;
  }
  return entries;
}

function readMagic(kind: ImageKind, view: DataView): number {
  const words = kind.envelope === 'single' ? 1 : 2;
  if (view.byteLength < 4 * words) throw new ImageFormatError('corrupt', `is only ${view.byteLength} bytes long`);
  const first = view.getUint32(0, true);
  const wanted = kind.envelope === 'single' ? kind.magic : kind.envelope === 'common' ? kCommonMagic : kServiceMagic;
  if (first !== wanted) throw new ImageFormatError('version', `starts with ${hex(first)}, wanted ${hex(wanted)}`);
  if (words === 2) {
    const second = view.getUint32(4, true);
    if (second !== kind.magic)
      throw new ImageFormatError('version', `has magic ${hex(second)}, wanted ${hex(kind.magic)}`);
  }
  return 4 * words;
}

function u32(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  putUint32(bytes, value);
  return bytes;
}

function putUint32(bytes: Uint8Array, value: number): void {
  bytes[0] = value;
  bytes[1] = value >>> 8;
  bytes[2] = value >>> 16;
  bytes[3] = value >>> 24;
}

const hex = (value: number): string => `0x${value.toString(16).padStart(8, '0')}`;
