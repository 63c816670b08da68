// Bytes of protobuf messages as they are written (protobuf.dev, "Encoding"): what the functions call that hack/generate.mjs
// makes of the .proto files. One buffer for all that a program writes; a nested message is written in its place, its
// length before it when it is known. Numbers of 64 bits are bigints.

/** Of a tag, and of the longest number behind it. */
const kLongestNumber = 5 + 10;
/** In UTF-8 a unit of a string is three bytes at most; so many units have a length of one byte. */
const kShortString = 42;
const k28Bits = 2 ** 28;

/** A number of 64 bits and its two halves, the low one first: all machines that we run on have it so. */
const words64 = new BigUint64Array(1);
const words32 = new Uint32Array(words64.buffer);

/** Constant lists as fields: by list and tag, as bytes. */
const constants = new WeakMap<readonly unknown[], Map<number, Uint8Array>>();

/** A list that many messages have, and that nobody changes: what it is as a field is found out once. */
export function constantList<Value>(values: Value[]): Value[] {
  Object.freeze(values);
  constants.set(values, new Map());
  return values;
}

export class MessageWriter {
  /** Where the next byte goes. */
  pos = 0;
  #bytes: Buffer;

  constructor(firstBytes: number) {
    this.#bytes = Buffer.allocUnsafeSlow(firstBytes);
  }

  uint32(tag: number, value: number): void {
    this.#tag(tag);
    this.#varint(value >>> 0);
  }

  int32(tag: number, value: number): void {
    this.#tag(tag);
    if (value >= 0) this.#varint(value);
    else this.#varint64(BigInt(value));
  }

  sint32(tag: number, value: number): void {
    this.#tag(tag);
    this.#varint(((value << 1) ^ (value >> 31)) >>> 0);
  }

  bool(tag: number, value: boolean): void {
    this.#tag(tag);
    this.#bytes[this.pos++] = value ? 1 : 0;
  }

  fixed32(tag: number, value: number): void {
    this.#tag(tag);
    this.rawUint32(value);
  }

  uint64(tag: number, value: bigint): void {
    this.#tag(tag);
    this.#varint64(value);
  }

  int64(tag: number, value: bigint): void {
    this.#tag(tag);
    this.#varint64(value);
  }

  sint64(tag: number, value: bigint): void {
    this.#tag(tag);
    this.#varint64((value << 1n) ^ (value >> 63n));
  }

  fixed64(tag: number, value: bigint): void {
    this.#tag(tag);
    words64[0] = value;
    this.rawUint32(words32[0]!);
    this.rawUint32(words32[1]!);
  }

  string(tag: number, value: string): void {
    this.#tag(tag);
    if (value.length > kShortString) {
      const length = Buffer.byteLength(value);
      this.#varint(length);
      this.#reserve(length);
      this.pos += this.#bytes.write(value, this.pos);
      return;
    }
    this.#reserve(1 + 3 * kShortString);
    const length = this.#bytes.write(value, this.pos + 1);
    this.#bytes[this.pos] = length;
    this.pos += 1 + length;
  }

  bytes(tag: number, value: Uint8Array): void {
    this.#tag(tag);
    this.#varint(value.length);
    this.raw(value);
  }

  /** Numbers with a tag each. */
  uint32s(tag: number, values: readonly number[]): void {
    if (this.again(tag, values)) return;
    const start = this.pos;
    this.#reserve(values.length * kLongestNumber);
    const bytes = this.#bytes;
    for (let index = 0; index < values.length; index += 1) {
      const value = values[index]!;
      if (tag > 0x7f || value > 0x7f || value < 0) this.uint32(tag, value);
      else {
        bytes[this.pos] = tag;
        bytes[this.pos + 1] = value;
        this.pos += 2;
      }
    }
    this.remember(tag, values, start);
  }
  uint64s(tag: number, values: readonly bigint[]): void {
    if (this.again(tag, values)) return;
    const start = this.pos;
    for (let index = 0; index < values.length; index += 1) this.uint64(tag, values[index]!);
    this.remember(tag, values, start);
  }

  /** Whether this list was written as this field before, and cannot have changed: then it is written again. */
  again(tag: number, values: readonly unknown[]): boolean {
    const bytes = constants.get(values)?.get(tag);
    if (bytes !== undefined) this.raw(bytes);
    return bytes !== undefined;
  }
  remember(tag: number, values: readonly unknown[], start: number): void {
    constants.get(values)?.set(tag, Uint8Array.prototype.slice.call(this.#bytes, start, this.pos));
  }

  /** Bytes that belong to no message. */
  raw(value: Uint8Array): void {
    this.#reserve(value.length);
    this.#bytes.set(value, this.pos);
    this.pos += value.length;
  }

  /** Numbers of up to 32 bits, or of 64, without tags. */
  packedNumber(value: number): void {
    this.#reserve(kLongestNumber);
    if (value >= 0) this.#varint(value);
    else this.#varint64(BigInt(value));
  }
  packedBigint(value: bigint): void {
    this.#reserve(kLongestNumber);
    this.#varint64(value);
  }

  /** Begins what has its length before it; the result is for end(). */
  begin(tag: number): number {
    this.#tag(tag);
    return ++this.pos;
  }

  /** Most lengths fit the byte that begin() has left for them; what is longer is moved. */
  end(start: number): void {
    const length = this.pos - start;
    if (length < 0x80) {
      this.#bytes[start - 1] = length;
      return;
    }
    let more = 0;
    for (let rest = length >>> 7; rest > 0; rest >>>= 7) more += 1;
    this.#reserve(more);
    this.#bytes.copyWithin(start + more, start, this.pos);
    this.pos = start - 1;
    this.#varint(length);
    this.pos += length;
  }

  /** Four bytes that belong to no message; the result is for setUint32(). */
  rawUint32(value: number): number {
    this.#reserve(4);
    const at = this.pos;
    this.pos += 4;
    this.setUint32(at, value);
    return at;
  }
  setUint32(at: number, value: number): void {
    const bytes = this.#bytes;
    bytes[at] = value;
    bytes[at + 1] = value >>> 8;
    bytes[at + 2] = value >>> 16;
    bytes[at + 3] = value >>> 24;
  }

  /** A view of everything so far, which further writing leaves behind or not. */
  written(): Uint8Array {
    return this.#bytes.subarray(0, this.pos);
  }

  #tag(tag: number): void {
    if (this.pos + kLongestNumber > this.#bytes.length) this.#reserve(kLongestNumber);
    if (tag < 0x80) this.#bytes[this.pos++] = tag;
    else this.#varint(tag);
  }

  #varint(value: number): void {
    const bytes = this.#bytes;
    let { pos } = this;
    for (; value > 0x7f; value >>>= 7) bytes[pos++] = (value & 0x7f) | 0x80;
    bytes[pos++] = value;
    this.pos = pos;
  }

  /** By way of memory, which takes it apart for a fraction of what a shift of a bigint costs. */
  #varint64(value: bigint): void {
    words64[0] = value;
    const low = words32[0]!;
    const high = words32[1]!;
    if (high === 0) this.#varint(low);
    else this.#split(low & 0xfffffff, high * 16 + (low >>> 28));
  }

  /** A number as its low 28 bits, which are four bytes, and the rest. */
  #split(low: number, high: number): void {
    const bytes = this.#bytes;
    const { pos } = this;
    bytes[pos] = (low & 0x7f) | 0x80;
    bytes[pos + 1] = ((low >>> 7) & 0x7f) | 0x80;
    bytes[pos + 2] = ((low >>> 14) & 0x7f) | 0x80;
    bytes[pos + 3] = (low >>> 21) | 0x80;
    this.pos = pos + 4;
    if (high <= 0xffffffff) this.#varint(high);
    else this.#split(high % k28Bits, Math.floor(high / k28Bits));
  }

  #reserve(count: number): void {
    const needed = this.pos + count;
    if (needed <= this.#bytes.length) return;
    const larger = Buffer.allocUnsafeSlow(Math.max(needed, 2 * this.#bytes.length));
    larger.set(this.#bytes.subarray(0, this.pos));
    this.#bytes = larger;
  }
}
