// Turns bytes into plain objects and back, by a protobufjs descriptor.
// 64-bit integers are bigint; an absent optional field is undefined; a
// repeated field is always an array. No I/O.
import Long from 'long';
import protobuf from 'protobufjs/light.js';

export interface Codec<Messages> {
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

export function makeCodec<Messages>(descriptor: object): Codec<Messages> {
  const root = protobuf.Root.fromJSON(descriptor);
  const types = new Map<string, protobuf.Type>();
  const typeOf = (name: string): protobuf.Type => {
    let type = types.get(name);
    if (type === undefined) {
      type = root.lookupType(name);
      type.resolveAll();
      types.set(name, type);
    }
    return type;
  };
  return {
    encode: (name, value) => {
      const type = typeOf(name);
      return type.encode(toWire(type, value as Record<string, unknown>)).finish();
    },
    decode: (name, bytes) => {
      const type = typeOf(name);
      return fromWire(type, type.decode(bytes) as unknown as Record<string, unknown>) as never;
    },
  };
}

const kSigned64 = new Set(['int64', 'sint64', 'sfixed64']);
const kUnsigned64 = new Set(['uint64', 'fixed64']);

function toWire(type: protobuf.Type, value: Record<string, unknown>): protobuf.Message {
  const message: Record<string, unknown> = {};
  for (const field of type.fieldsArray) {
    const given = value[field.name];
    if (given === undefined || given === null) continue;
    message[field.name] = field.repeated
      ? (given as readonly unknown[]).map((item) => fieldToWire(field, item))
      : fieldToWire(field, given);
  }
  return type.create(message);
}

function fieldToWire(field: protobuf.Field, value: unknown): unknown {
  if (field.resolvedType instanceof protobuf.Type) return toWire(field.resolvedType, value as Record<string, unknown>);
  const unsigned = kUnsigned64.has(field.type);
  if (!unsigned && !kSigned64.has(field.type)) return value;
  const wide = BigInt.asUintN(64, BigInt(value as bigint | number));
  return Long.fromBits(Number(wide & 0xffffffffn) | 0, Number(wide >> 32n) | 0, unsigned);
}

function fromWire(type: protobuf.Type, message: Record<string, unknown>): Record<string, unknown> {
  const value: Record<string, unknown> = {};
  for (const field of type.fieldsArray) {
    const own = Object.prototype.hasOwnProperty.call(message, field.name);
    if (field.repeated) {
      const items = own ? (message[field.name] as readonly unknown[]) : [];
      value[field.name] = items.map((item) => fieldFromWire(field, item));
    } else if (own && message[field.name] !== null) {
      value[field.name] = fieldFromWire(field, message[field.name]);
    } else if (hasDefault(type, field)) {
      value[field.name] = fieldFromWire(field, message[field.name]);
    }
  }
  return value;
}

/** proto3 scalars outside a oneof; proto2 (CRIU's messages, which have no package) leaves the field out. */
function hasDefault(type: protobuf.Type, field: protobuf.Field): boolean {
  if (field.partOf !== null || field.resolvedType instanceof protobuf.Type) return false;
  return type.fullName.split('.').length > 2;
}

function fieldFromWire(field: protobuf.Field, value: unknown): unknown {
  if (field.resolvedType instanceof protobuf.Type) {
    return fromWire(field.resolvedType, value as Record<string, unknown>);
  }
  if (field.type === 'bytes') return value instanceof Uint8Array ? value : new Uint8Array(0);
  const unsigned = kUnsigned64.has(field.type);
  if (!unsigned && !kSigned64.has(field.type)) return value;
  if (typeof value === 'number') return BigInt(value);
  const long = value as Long;
  const wide = (BigInt(long.high >>> 0) << 32n) | BigInt(long.low >>> 0);
  return unsigned ? wide : BigInt.asIntN(64, wide);
}
