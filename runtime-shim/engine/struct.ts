// Kernel structures as bytes: little-endian fields at fixed offsets.

export class Struct {
  readonly bytes: Uint8Array;
  readonly #view: DataView;

  constructor(source: number | Uint8Array) {
    this.bytes = typeof source === 'number' ? new Uint8Array(source) : source;
    this.#view = new DataView(this.bytes.buffer, this.bytes.byteOffset, this.bytes.byteLength);
  }

  get length(): number {
    return this.bytes.length;
  }

  u16(offset: number): number {
    return this.#view.getUint16(offset, true);
  }
  u32(offset: number): number {
    return this.#view.getUint32(offset, true);
  }
  i32(offset: number): number {
    return this.#view.getInt32(offset, true);
  }
  u64(offset: number): bigint {
    return this.#view.getBigUint64(offset, true);
  }
  i64(offset: number): bigint {
    return this.#view.getBigInt64(offset, true);
  }

  setU8(offset: number, value: number): this {
    this.#view.setUint8(offset, value);
    return this;
  }
  setU16(offset: number, value: number): this {
    this.#view.setUint16(offset, value, true);
    return this;
  }
  setU32(offset: number, value: number): this {
    this.#view.setUint32(offset, value, true);
    return this;
  }
  setI32(offset: number, value: number): this {
    this.#view.setInt32(offset, value, true);
    return this;
  }
  setU64(offset: number, value: bigint): this {
    // It takes the low 64 bits, of negative numbers as well.
    this.#view.setBigUint64(offset, value, true);
    return this;
  }
  set(offset: number, bytes: Uint8Array): this {
    this.bytes.set(bytes, offset);
    return this;
  }

  u32s(offset: number, count: number): number[] {
    const values: number[] = [];
    for (let index = 0; index < count; index += 1) values.push(this.#view.getUint32(offset + 4 * index, true));
    return values;
  }
  u64s(offset: number, count: number): bigint[] {
    const values: bigint[] = [];
    for (let index = 0; index < count; index += 1) values.push(this.#view.getBigUint64(offset + 8 * index, true));
    return values;
  }
  setU32s(offset: number, values: readonly number[]): this {
    for (let index = 0; index < values.length; index += 1)
      this.#view.setUint32(offset + 4 * index, values[index]!, true);
    return this;
  }
  setU64s(offset: number, values: readonly bigint[]): this {
    for (let index = 0; index < values.length; index += 1)
      this.#view.setBigUint64(offset + 8 * index, values[index]!, true);
    return this;
  }
}

export function u64Bytes(...values: readonly bigint[]): Uint8Array {
  return new Struct(8 * values.length).setU64s(0, values).bytes;
}
