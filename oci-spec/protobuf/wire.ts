// What the functions call that hack/generate.mjs makes of the .proto files, besides protobufjs's Reader and Writer, which are
// the wire format: exact 64-bit integers, and lists that are the same in many messages. What is read may be anybody's bytes.
import Long from 'long';
import protobuf from 'protobufjs/minimal.js';

// Without it protobufjs would round 64-bit integers to doubles; a bundler hides the package from its own search.
protobuf.util.Long = Long;
protobuf.configure();

export type Reader = protobuf.Reader;
export type Writer = protobuf.Writer;
export const newReader = (bytes: Uint8Array): Reader => protobuf.Reader.create(bytes);
export const newWriter = (): Writer => protobuf.Writer.create();

export const kNoBytes = new Uint8Array(0);

/** Deeper nesting is refused: no message of ours or of CRIU's comes near. */
const kMaxDepth = 64;

/** A number of 64 bits and its two halves, the low one first: shifts of bigints would cost many times as much. */
const words64 = new BigUint64Array(1);
const words32 = new Uint32Array(words64.buffer);

/** What most numbers are is not made again for each. */
const kSmall = Array.from({ length: 0x80 }, (_, value) => BigInt(value));

// ---- writing

export function writeUint64(writer: Writer, value: bigint): void {
  words64[0] = value;
  const low = words32[0]!;
  const high = words32[1]!;
  if (high === 0) writer.uint32(low);
  else writer.uint64(Long.fromBits(low, high, true));
}
/** Two's complement: as the unsigned number of the same bits. */
export const writeInt64 = writeUint64;
export function writeSint64(writer: Writer, value: bigint): void {
  writeUint64(writer, (value << 1n) ^ (value >> 63n));
}
export function writeFixed64(writer: Writer, value: bigint): void {
  words64[0] = value;
  writer.fixed32(words32[0]!).fixed32(words32[1]!);
}

/** Constant lists as fields: by list and field number, as bytes. */
const constants = new WeakMap<readonly unknown[], Map<number, Uint8Array>>();

/** A list that many messages have, and that nobody changes: what it is as a field is found out once. */
export function constantList<Value>(values: Value[]): Value[] {
  Object.freeze(values);
  constants.set(values, new Map());
  return values;
}

/** A repeated field; `write` writes all of it. */
export function writeList<Value>(
  writer: Writer,
  field: number,
  values: readonly Value[],
  write: (writer: Writer, values: readonly Value[]) => void,
): void {
  const known = constants.get(values);
  if (known === undefined) {
    write(writer, values);
    return;
  }
  let bytes = known.get(field);
  if (bytes === undefined) {
    const own = newWriter();
    write(own, values);
    known.set(field, (bytes = own.finish()));
  }
  writer.raw(bytes);
}

// ---- reading

export function readUint64(reader: Reader): bigint {
  const byte = reader.buf[reader.pos];
  if (byte !== undefined && byte < 0x80 && reader.pos < reader.len) {
    reader.pos += 1;
    return kSmall[byte]!;
  }
  return bigintOf(reader.uint64() as Long);
}
export const readInt64 = (reader: Reader): bigint => BigInt.asIntN(64, readUint64(reader));
export function readSint64(reader: Reader): bigint {
  const value = readUint64(reader);
  return (value & 1n) === 0n ? value >> 1n : -(value >> 1n) - 1n;
}
export const readFixed64 = (reader: Reader): bigint => bigintOf(reader.fixed64() as Long);

function bigintOf({ low, high }: Long): bigint {
  words32[0] = low;
  words32[1] = high;
  return words64[0]!;
}

/** Reads a length, and returns where what it counts ends. */
export function readEnd(reader: Reader): number {
  const length = reader.uint32();
  const end = reader.pos + length;
  if (end > reader.len) throw new RangeError(`${length} bytes at ${reader.pos} run past the end (${reader.len})`);
  return end;
}

/** What no field of the message has. */
export function skip(reader: Reader, tag: number): void {
  if (tag >>> 3 === 0) throw new TypeError('a field has the number 0');
  reader.skipType(tag & 7, 0, tag >>> 3);
}

/** Of messages that may hold messages of their own kind. */
export function checkDepth(message: string, depth: number): void {
  if (depth >= kMaxDepth) throw new RangeError(`${message} is nested more than ${kMaxDepth} deep`);
}

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
