// Turns bytes into plain objects and back, by a table of fields that
// hack/generate.mjs makes from the .proto files. 64-bit integers are bigint; an
// absent optional field is undefined; a repeated field is always an array.
// The wire format is protobufjs's; its reflection is not used, because it
// compiles code for every message type: 90 ms of a 250 ms restore. No I/O.
import Long from 'long';
import protobuf from 'protobufjs/minimal.js';

const { Reader, Writer } = protobuf;
type Reader = protobuf.Reader;
type Writer = protobuf.Writer;

// Without it protobufjs would round 64-bit integers to doubles; a bundler hides the package from its own search.
protobuf.util.Long = Long;
protobuf.configure();

export interface Codec<Messages> {
  /** Throws if a required field is missing. */
  encode<Name extends keyof Messages & string>(name: Name, value: PartialMessage<Messages[Name]>): Uint8Array;
  /** Throws if the bytes are not a message of that type; counts are bounded by the input's length. */
  decode<Name extends keyof Messages & string>(name: Name, bytes: Uint8Array): Messages[Name];
}

/** A message in which anything may be left out (proto3 defaults, proto2 optionals). */
export type PartialMessage<T> = T extends bigint | number | string | boolean | Uint8Array | undefined
  ? T
  : T extends readonly (infer Item)[]
    ? readonly PartialMessage<Item>[]
    : { [Key in keyof T]?: PartialMessage<T[Key]> | undefined };

/** Message name -> fields: number, name, type (scalar, 'enum' or a message name), presence. */
export type MessageTable = Readonly<Record<string, readonly (readonly [number, string, string, number])[]>>;

const kRequired = 0;
const kRepeated = 2;
const kPacked = 3;
/** proto3: absent on the wire means zero or empty. */
const kAlways = 4;

/** Deeper nesting is refused: no message of ours or of CRIU's comes near, and recursion ends somewhere. */
const kMaxDepth = 64;

const kVarint = 0;
const kFixed64 = 1;
const kLengthDelimited = 2;
const kFixed32 = 5;

interface Scalar {
  readonly wireType: number;
  readonly zero: unknown;
  write(writer: Writer, value: never): void;
  read(reader: Reader): unknown;
}

const scalars: Readonly<Record<string, Scalar>> = {
  int32: { wireType: kVarint, zero: 0, write: (w, v: number) => w.int32(v), read: (r) => r.int32() },
  uint32: { wireType: kVarint, zero: 0, write: (w, v: number) => w.uint32(v), read: (r) => r.uint32() },
  sint32: { wireType: kVarint, zero: 0, write: (w, v: number) => w.sint32(v), read: (r) => r.sint32() },
  enum: { wireType: kVarint, zero: 0, write: (w, v: number) => w.int32(v), read: (r) => r.int32() },
  bool: { wireType: kVarint, zero: false, write: (w, v: boolean) => w.bool(v), read: (r) => r.bool() },
  fixed32: { wireType: kFixed32, zero: 0, write: (w, v: number) => w.fixed32(v), read: (r) => r.fixed32() },
  sfixed32: { wireType: kFixed32, zero: 0, write: (w, v: number) => w.sfixed32(v), read: (r) => r.sfixed32() },
  float: { wireType: kFixed32, zero: 0, write: (w, v: number) => w.float(v), read: (r) => r.float() },
  double: { wireType: kFixed64, zero: 0, write: (w, v: number) => w.double(v), read: (r) => r.double() },
  int64: {
    wireType: kVarint,
    zero: 0n,
    write: (w, v: bigint) => writeVarint(w, v),
    read: (r) => readShort(r) ?? toSigned(r.int64()),
  },
  uint64: {
    wireType: kVarint,
    zero: 0n,
    write: (w, v: bigint) => writeVarint(w, v),
    read: (r) => readShort(r) ?? toUnsigned(r.uint64()),
  },
  sint64: {
    wireType: kVarint,
    zero: 0n,
    write: (w, v: bigint) => (v === -1n ? w.uint32(1) : w.sint64(toWritable(v))),
    read: (r) => toSigned(r.sint64()),
  },
  fixed64: {
    wireType: kFixed64,
    zero: 0n,
    write: (w, v: bigint) => w.fixed64(toWritable(v)),
    read: (r) => toUnsigned(r.fixed64()),
  },
  sfixed64: {
    wireType: kFixed64,
    zero: 0n,
    write: (w, v: bigint) => w.sfixed64(toWritable(v)),
    read: (r) => toSigned(r.sfixed64()),
  },
  string: { wireType: kLengthDelimited, zero: '', write: (w, v: string) => w.string(v), read: (r) => r.string() },
  bytes: {
    wireType: kLengthDelimited,
    zero: new Uint8Array(0),
    write: (w, v: Uint8Array) => w.bytes(v),
    read: (r) => r.bytes(),
  },
};

interface Field {
  readonly number: number;
  readonly name: string;
  readonly presence: number;
  readonly scalar: Scalar | undefined;
  /** Message name, where there is no scalar. */
  readonly message: string;
}

interface MessageType {
  readonly name: string;
  readonly byNumber: ReadonlyMap<number, Field>;
  readonly byName: ReadonlyMap<string, Field>;
  readonly required: readonly Field[];
  readonly repeated: readonly Field[];
  /** Those that are there even if the wire has nothing of them. */
  readonly always: readonly Field[];
}

type Plain = Record<string, unknown>;

export function makeCodec<Messages>(table: MessageTable): Codec<Messages> {
  const types = new Map<string, MessageType>();
  const typeOf = (name: string): MessageType => {
    let type = types.get(name);
    if (type === undefined) {
      const rows = table[name];
      if (rows === undefined) throw new RangeError(`there is no message "${name}"`);
      const fields = rows.map(([number, fieldName, wire, presence]): Field => {
        return { number, name: fieldName, presence, scalar: scalars[wire], message: wire };
      });
      type = {
        name,
        byNumber: new Map(fields.map((field) => [field.number, field])),
        byName: new Map(fields.map((field) => [field.name, field])),
        required: fields.filter(({ presence }) => presence === kRequired),
        repeated: fields.filter(({ presence }) => presence === kRepeated || presence === kPacked),
        always: fields.filter(({ presence }) => presence === kAlways),
      };
      types.set(name, type);
    }
    return type;
  };

  const write = (writer: Writer, type: MessageType, value: Plain): void => {
    for (const { name } of type.required) {
      if (value[name] === undefined || value[name] === null)
        throw new TypeError(`${type.name} lacks the required field "${name}"`);
    }
    // In the order of the object, not of the table: to ask for what most messages do not have took half of the time.
    for (const name in value) {
      const given = value[name];
      if (given === undefined || given === null) continue;
      const field = type.byName.get(name);
      if (field === undefined) continue;
      if (field.presence === kRepeated || field.presence === kPacked) {
        writeRepeated(writer, field, given as readonly unknown[]);
      } else if (field.presence !== kAlways || !isZero(given)) {
        writeOne(writer, field, given);
      }
    }
  };
  const writeRepeated = (writer: Writer, field: Field, items: readonly unknown[]): void => {
    if (field.presence === kRepeated) {
      for (const item of items) writeOne(writer, field, item);
    } else if (items.length > 0) {
      writer.uint32((field.number << 3) | kLengthDelimited).fork();
      for (const item of items) field.scalar?.write(writer, item as never);
      writer.ldelim();
    }
  };
  const writeOne = (writer: Writer, field: Field, value: unknown): void => {
    if (field.scalar !== undefined) {
      writer.uint32((field.number << 3) | field.scalar.wireType);
      field.scalar.write(writer, value as never);
    } else {
      writer.uint32((field.number << 3) | kLengthDelimited).fork();
      write(writer, typeOf(field.message), value as Plain);
      writer.ldelim();
    }
  };

  const read = (reader: Reader, type: MessageType, end: number, depth: number): Plain => {
    if (depth > kMaxDepth) throw new RangeError(`${type.name} is nested more than ${kMaxDepth} deep`);
    const value: Plain = {};
    for (const { name } of type.repeated) value[name] = [];
    for (const { name, scalar } of type.always) value[name] = scalar?.zero;
    while (reader.pos < end) {
      const tag = reader.uint32();
      const field = type.byNumber.get(tag >>> 3);
      if (field === undefined) reader.skipType(tag & 7);
      else readField(reader, type, field, tag & 7, value, depth);
    }
    if (reader.pos !== end) throw new RangeError(`${type.name} runs past its end`);
    for (const { name } of type.required) {
      if (value[name] === undefined) throw new TypeError(`${type.name} lacks the required field "${name}"`);
    }
    return value;
  };
  const readField = (
    reader: Reader,
    type: MessageType,
    field: Field,
    wireType: number,
    value: Plain,
    depth: number,
  ): void => {
    const repeated = field.presence === kRepeated || field.presence === kPacked;
    const { scalar } = field;
    if (scalar === undefined || scalar.wireType !== wireType) {
      if (wireType !== kLengthDelimited)
        throw new TypeError(`field "${field.name}" of ${type.name} has wire type ${wireType}`);
      const length = reader.uint32();
      const end = reader.pos + length;
      if (end > reader.len) throw new RangeError(`field "${field.name}" of ${type.name} runs past the end`);
      if (scalar === undefined) {
        const message = read(reader, typeOf(field.message), end, depth + 1);
        if (repeated) (value[field.name] as unknown[]).push(message);
        else value[field.name] = message;
      } else {
        if (!repeated) throw new TypeError(`field "${field.name}" of ${type.name} has wire type ${wireType}`);
        while (reader.pos < end) (value[field.name] as unknown[]).push(scalar.read(reader));
      }
    } else if (repeated) {
      (value[field.name] as unknown[]).push(scalar.read(reader));
    } else {
      value[field.name] = scalar.read(reader);
    }
  };

  return {
    encode: (name, value) => {
      const writer = Writer.create();
      write(writer, typeOf(name), value as Plain);
      return writer.finish();
    },
    decode: (name, bytes) => {
      const reader = Reader.create(bytes);
      return read(reader, typeOf(name), reader.len, 0) as never;
    },
  };
}

function isZero(value: unknown): boolean {
  return (
    value === 0 ||
    value === 0n ||
    value === false ||
    value === '' ||
    (value instanceof Uint8Array && value.length === 0)
  );
}

/**
 * A varint of up to seven bytes, which nearly all are: by way of a number, without the two objects that protobufjs makes
 * of a 64-bit one. Undefined, and nothing read, if it is longer or the bytes end before it.
 */
function readShort(reader: Reader): bigint | undefined {
  const { buf, len } = reader;
  let { pos } = reader;
  let value = 0;
  for (let scale = 1; scale < kEndOfShort && pos < len; scale *= 128) {
    const byte = buf[pos++]!;
    value += (byte & 127) * scale;
    if (byte > 127) continue;
    reader.pos = pos;
    return value === 0 ? 0n : BigInt(value);
  }
  return undefined;
}
const kEndOfShort = 128 ** 7;

function writeVarint(writer: Writer, value: bigint | number): void {
  const number = Number(value);
  if (number >= 0 && number <= 0xffffffff) writer.uint32(number);
  else writer.uint64(toWritable(value));
}

/** Up to 2^53 a number, which costs a fraction of taking a bigint apart; that is nearly all addresses, ids and sizes. */
function toWritable(value: bigint | number): Long | number {
  const number = Number(value);
  if (Number.isSafeInteger(number)) return number;
  const wide = BigInt.asUintN(64, BigInt(value));
  return Long.fromBits(Number(wide & 0xffffffffn) | 0, Number(wide >> 32n) | 0, true);
}

function toUnsigned(value: number | { readonly low: number; readonly high: number }): bigint {
  if (typeof value === 'number') throw new TypeError('protobufjs lost its 64-bit integers');
  const high = value.high >>> 0;
  const low = value.low >>> 0;
  return high < kHighOfNumbers ? BigInt(high * 2 ** 32 + low) : (BigInt(high) << 32n) | BigInt(low);
}
/** 2^53 / 2^32 */
const kHighOfNumbers = 2 ** 21;

function toSigned(value: number | { readonly low: number; readonly high: number }): bigint {
  return BigInt.asIntN(64, toUnsigned(value));
}
