// Bytes of protobuf messages as they are read (protobuf.dev, "Encoding"): what the functions call that hack/generate.mjs
// makes of the .proto files. The bytes may be anybody's: no read goes past the end, no count is believed before the
// bytes for it are there, and recursion ends. Numbers of 64 bits are bigints.

/** Deeper nesting is refused: no message of ours or of CRIU's comes near. */
const kMaxDepth = 64;
const kLongestVarint = 10;
export const kNoBytes = new Uint8Array(0);
const kSmall = Array.from({ length: 0x80 }, (_, value) => BigInt(value));

const enum Wire {
  varint = 0,
  fixed64 = 1,
  delimited = 2,
  fixed32 = 5,
}

export class MessageReader {
  pos = 0;
  readonly #bytes: Buffer;
  readonly #length: number;
  #depth = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#length = bytes.length;
  }

  /** Precondition: the message has not come to its end. */
  tag(): number {
    const byte = this.#bytes[this.pos]!;
    if (byte > 0x7f) return this.#varint32();
    this.pos += 1;
    return byte;
  }

  uint32(): number {
    const { pos } = this;
    const byte = pos < this.#length ? this.#bytes[pos]! : 0x80;
    if (byte > 0x7f) return this.#varint32();
    this.pos = pos + 1;
    return byte;
  }
  int32(): number {
    return this.uint32() | 0;
  }
  sint32(): number {
    const value = this.uint32();
    return (value >>> 1) ^ -(value & 1);
  }
  bool(): boolean {
    return this.uint64() !== 0n;
  }
  fixed32(): number {
    return this.#bytes.readUInt32LE(this.#skip(4));
  }

  uint64(): bigint {
    const { pos } = this;
    const byte = pos < this.#length ? this.#bytes[pos]! : 0x80;
    if (byte > 0x7f) return this.#varint64();
    this.pos = pos + 1;
    return kSmall[byte]!;
  }
  int64(): bigint {
    const value = this.uint64();
    return value < kSignBit ? value : BigInt.asIntN(64, value);
  }
  sint64(): bigint {
    const value = this.uint64();
    return (value & 1n) === 0n ? value >> 1n : -(value >> 1n) - 1n;
  }
  fixed64(): bigint {
    return this.#bytes.readBigUInt64LE(this.#skip(8));
  }

  string(): string {
    const end = this.end();
    const start = this.pos;
    this.pos = end;
    return this.#bytes.toString('utf8', start, end);
  }
  /** A view of what is read. */
  bytes(): Uint8Array {
    const end = this.end();
    const start = this.pos;
    if (start === end) return kNoBytes;
    this.pos = end;
    return this.#bytes.subarray(start, end);
  }

  /** Reads a length, and returns where what it counts ends. */
  end(): number {
    const length = this.uint32();
    const end = this.pos + length;
    if (end > this.#length) throw new RangeError(`${length} bytes at ${this.pos} run past the end (${this.#length})`);
    return end;
  }

  /** Numbers: one, and those that follow with the same tag, which has one byte. */
  uint32s(tag: number, values: number[]): void {
    const bytes = this.#bytes;
    do {
      const byte = this.pos < this.#length ? bytes[this.pos]! : 0x80;
      if (byte > 0x7f) values.push(this.#varint32());
      else {
        values.push(byte);
        this.pos += 1;
      }
    } while (this.#comes(tag));
  }
  uint64s(tag: number, values: bigint[]): void {
    const bytes = this.#bytes;
    do {
      const byte = this.pos < this.#length ? bytes[this.pos]! : 0x80;
      if (byte > 0x7f) values.push(this.#varint64());
      else {
        values.push(kSmall[byte]!);
        this.pos += 1;
      }
    } while (this.#comes(tag));
  }

  /** What no field of the message has. */
  skip(tag: number): void {
    if (tag >>> 3 === 0) throw new TypeError('a field has the number 0');
    switch (tag & 7) {
      case Wire.varint:
        this.uint64();
        return;
      case Wire.fixed64:
        this.#skip(8);
        return;
      case Wire.fixed32:
        this.#skip(4);
        return;
      case Wire.delimited:
        this.pos = this.end();
        return;
      default:
        throw new TypeError(`field ${tag >>> 3} has wire type ${tag & 7}`);
    }
  }

  /** Messages that may hold messages of their own kind. */
  enter(name: string): void {
    this.#depth += 1;
    if (this.#depth > kMaxDepth) throw new RangeError(`${name} is nested more than ${kMaxDepth} deep`);
  }
  leave(): void {
    this.#depth -= 1;
  }

  #comes(tag: number): boolean {
    if (this.pos >= this.#length || this.#bytes[this.pos] !== tag) return false;
    this.pos += 1;
    return true;
  }

  #skip(count: number): number {
    const { pos } = this;
    if (pos + count > this.#length) throw new RangeError(`${count} bytes at ${pos} run past the end (${this.#length})`);
    this.pos = pos + count;
    return pos;
  }

  /** The low 32 bits of a varint, as protobuf reads numbers that are too long. */
  #varint32(): number {
    const bytes = this.#bytes;
    let value = 0;
    for (let count = 0; count < kLongestVarint && this.pos < this.#length; count += 1) {
      const byte = bytes[this.pos++]!;
      if (count < 5) value |= (byte & 0x7f) << (7 * count);
      if (byte < 0x80) return value >>> 0;
    }
    throw new RangeError(`a number at ${this.pos} has no end`);
  }

  /** Three parts of 28 bits, put together in memory: shifts of bigints would cost many times as much. */
  #varint64(): bigint {
    const bytes = this.#bytes;
    let low = 0;
    let middle = 0;
    let high = 0;
    for (let count = 0; count < kLongestVarint && this.pos < this.#length; count += 1) {
      const byte = bytes[this.pos++]!;
      if (count < 4) low |= (byte & 0x7f) << (7 * count);
      else if (count < 8) middle |= (byte & 0x7f) << (7 * (count - 4));
      else high |= (byte & 0x7f) << (7 * (count - 8));
      if (byte > 0x7f) continue;
      if (count < 4) return BigInt(low);
      words32[0] = low | (middle << 28);
      words32[1] = (middle >>> 4) | (high << 24);
      return words64[0]!;
    }
    throw new RangeError(`a number at ${this.pos} has no end`);
  }
}

/** A number of 64 bits and its two halves, the low one first. */
const words64 = new BigUint64Array(1);
const words32 = new Uint32Array(words64.buffer);
const kSignBit = 1n << 63n;

/** A message has a field of a type that its schema does not say. */
export function refuseWireType(message: string, field: string, tag: number): never {
  throw new TypeError(`field "${field}" of ${message} has wire type ${tag & 7}`);
}
export function refuseEnd(message: string): never {
  throw new RangeError(`${message} runs past its end`);
}
export function refuseLack(message: string, field: string): never {
  throw new TypeError(`${message} lacks the required field "${field}"`);
}
