// Decompression of zstd data that has several frames one after the other, as
// parallel compressors and registries make them; Node's decompressor stops after
// the first. Where a frame ends is told by its block headers (RFC 8878, 3.1.1).
import { pipeline } from 'node:stream/promises';
import { constants, createZstdDecompress } from 'node:zlib';

const kFrameMagic = 0xfd2fb528;
const kSkippableMagic = 0x184d2a50;
const kReservedBlock = 3;
const kRleBlock = 1;

/** A frame may ask for 128 MiB of window and no more. */
export async function* decompressZstd(source: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  const input = new Input(source);
  for (;;) {
    const magic = await input.take(4);
    if (magic === undefined) return;
    if (magic.readUInt32LE() >>> 4 === kSkippableMagic >>> 4) {
      for await (const _piece of input.pass((await input.must(4)).readUInt32LE())) continue;
      continue;
    }
    if (magic.readUInt32LE() !== kFrameMagic) throw new Error('something else follows its compressed data');
    const frame = createZstdDecompress({ chunkSize: 1 << 18, params: { [constants.ZSTD_d_windowLogMax]: 27 } });
    const feeding = pipeline(frameBytes(magic, input), frame);
    // Seen below, where the output ends.
    feeding.catch(() => undefined);
    try {
      for await (const piece of frame) yield piece as Buffer;
    } finally {
      frame.destroy();
    }
    await feeding;
  }
}

async function* frameBytes(magic: Buffer, input: Input): AsyncGenerator<Buffer> {
  const descriptor = await input.must(1);
  yield Buffer.concat([magic, descriptor]);
  const flags = descriptor[0]!;
  const isSingleSegment = (flags & 0x20) !== 0;
  const contentSizeBytes = [isSingleSegment ? 1 : 0, 2, 4, 8][flags >> 6]!;
  const dictionaryBytes = [0, 1, 2, 4][flags & 3]!;
  yield* input.pass((isSingleSegment ? 0 : 1) + dictionaryBytes + contentSizeBytes);
  for (;;) {
    const header = await input.must(3);
    yield header;
    const value = header.readUIntLE(0, 3);
    const kind = (value >> 1) & 3;
    if (kind === kReservedBlock) throw new Error('its compressed data has a block of an unknown kind');
    yield* input.pass(kind === kRleBlock ? 1 : value >> 3);
    if ((value & 1) === 1) break;
  }
  if ((flags & 4) !== 0) yield* input.pass(4);
}

class Input {
  readonly #source: AsyncIterator<Buffer>;
  #rest: Buffer = Buffer.alloc(0);

  constructor(source: AsyncIterable<Buffer>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  /** undefined at the end. */
  async take(count: number): Promise<Buffer | undefined> {
    while (this.#rest.length < count) {
      const next = await this.#source.next();
      if (next.done === true) {
        if (this.#rest.length === 0) return undefined;
        throw cutShort();
      }
      this.#rest = this.#rest.length === 0 ? next.value : Buffer.concat([this.#rest, next.value]);
    }
    const bytes = this.#rest.subarray(0, count);
    this.#rest = this.#rest.subarray(count);
    return bytes;
  }

  async must(count: number): Promise<Buffer> {
    const bytes = await this.take(count);
    if (bytes === undefined) throw cutShort();
    return bytes;
  }

  async *pass(count: number): AsyncGenerator<Buffer> {
    for (let left = count; left > 0;) {
      const piece = await this.must(Math.min(left, Math.max(1, this.#rest.length)));
      left -= piece.length;
      yield piece;
    }
  }
}

function cutShort(): Error {
  return new Error('its compressed data is damaged or cut short');
}
