// Messages of the D-Bus protocol, as far as a client of systemd needs them:
// values by their signature, little-endian, without descriptors.
// https://dbus.freedesktop.org/doc/dbus-specification.html
import { FormatError } from './json.js';

export type DbusValue = number | bigint | string | boolean | DbusVariant | readonly DbusValue[];

/** A value that carries its own type. */
export interface DbusVariant {
  readonly signature: string;
  readonly value: DbusValue;
}

export const kDbusMethodCall = 1;
export const kDbusMethodReturn = 2;
export const kDbusError = 3;
export const kDbusSignal = 4;

export interface DbusMessage {
  readonly type: number;
  readonly serial: number;
  readonly path?: string;
  readonly interface?: string;
  readonly member?: string;
  readonly destination?: string;
  readonly errorName?: string;
  readonly replySerial?: number;
  readonly signature?: string;
  readonly body: readonly DbusValue[];
}

/** Of what systemd answers; the protocol allows 128 MiB. */
const kMaximalMessageBytes = 1 << 24;
const kMaximalDepth = 64;
const kFixedHeaderBytes = 16;

const alignments: Readonly<Record<string, number>> = {
  y: 1,
  b: 4,
  n: 2,
  q: 2,
  i: 4,
  u: 4,
  x: 8,
  t: 8,
  d: 8,
  s: 4,
  o: 4,
  g: 1,
  h: 4,
  a: 4,
  '(': 8,
  // An entry of a dictionary, which is an array of them.
  '{': 8,
  v: 1,
};

const headerFields: readonly (readonly [code: number, signature: string, name: keyof DbusMessage])[] = [
  [1, 'o', 'path'],
  [2, 's', 'interface'],
  [3, 's', 'member'],
  [4, 's', 'errorName'],
  [5, 'u', 'replySerial'],
  [6, 's', 'destination'],
  [8, 'g', 'signature'],
];

export function encodeDbusMessage(message: DbusMessage): Buffer {
  const body = new Writer();
  for (const [index, type] of completeTypes(message.signature ?? '').entries()) body.value(type, message.body[index]!);
  const fields = headerFields.flatMap(([code, signature, name]) => {
    const value = message[name] as DbusValue | undefined;
    return value === undefined ? [] : [[code, { signature, value }] as const];
  });
  const header = new Writer();
  // Little-endian, no flags, version 1 of the protocol.
  for (const byte of [0x6c, message.type, 0, 1]) header.value('y', byte);
  header.value('u', body.bytes().length);
  header.value('u', message.serial);
  header.value('a(yv)', fields);
  header.align(8);
  return Buffer.concat([header.bytes(), body.bytes()]);
}

/** The first message in `bytes`, and how long it is; undefined: it is not complete yet. Throws FormatError. */
export function decodeDbusMessage(
  bytes: Buffer,
): { readonly message: DbusMessage; readonly length: number } | undefined {
  if (bytes.length < kFixedHeaderBytes) return undefined;
  if (bytes[0] !== 0x6c || bytes[3] !== 1) throw new FormatError('message', 'is not of version 1, little-endian');
  const bodyLength = bytes.readUInt32LE(4);
  const bodyStart = aligned(kFixedHeaderBytes + bytes.readUInt32LE(12), 8);
  const length = bodyStart + bodyLength;
  if (length > kMaximalMessageBytes) throw new FormatError('message', `is ${length} bytes long`);
  if (bytes.length < length) return undefined;
  const reader = new Reader(bytes.subarray(0, bodyStart), 12);
  const fields: Record<string, DbusValue> = {};
  for (const field of reader.value('a(yv)') as readonly (readonly [number, DbusVariant])[]) {
    const known = headerFields.find(([code, signature]) => code === field[0] && signature === field[1].signature);
    if (known !== undefined) fields[known[2]] = field[1].value;
  }
  const signature = String(fields['signature'] ?? '');
  const body = new Reader(bytes.subarray(bodyStart, length), 0);
  return {
    message: {
      ...fields,
      type: bytes[1]!,
      serial: bytes.readUInt32LE(8),
      body: completeTypes(signature).map((type) => body.value(type)),
    },
    length,
  };
}

/** "sa(sv)" is "s" and "a(sv)". Throws FormatError. */
function completeTypes(signature: string): string[] {
  const types: string[] = [];
  for (let rest = signature; rest !== ''; rest = rest.slice(types.at(-1)!.length)) types.push(firstType(rest, 0));
  return types;
}

function firstType(signature: string, depth: number): string {
  const code = signature[0] ?? '';
  if (depth > kMaximalDepth || alignments[code] === undefined)
    throw new FormatError('signature', `has a type that is not known: "${signature}"`);
  if (code === 'a') return `a${firstType(signature.slice(1), depth + 1)}`;
  const closing = code === '(' ? ')' : '}';
  if (code !== '(' && code !== '{') return code;
  let end = 1;
  // At least one: a value of no length would fill an array without end.
  do end += firstType(signature.slice(end), depth + 1).length;
  while (signature[end] !== closing);
  return signature.slice(0, end + 1);
}

function aligned(offset: number, alignment: number): number {
  return Math.ceil(offset / alignment) * alignment;
}

class Writer {
  readonly #parts: Buffer[] = [];
  #length = 0;

  bytes(): Buffer {
    return Buffer.concat(this.#parts);
  }

  align(alignment: number): void {
    this.#push(Buffer.alloc(aligned(this.#length, alignment) - this.#length));
  }

  value(type: string, value: DbusValue): void {
    this.align(alignments[type[0]!]!);
    switch (type[0]) {
      case 'y':
        return this.#push(Buffer.of(value as number));
      case 'b':
        return this.#number(4, (bytes) => bytes.writeUInt32LE(value === true ? 1 : 0));
      case 'n':
        return this.#number(2, (bytes) => bytes.writeInt16LE(value as number));
      case 'q':
        return this.#number(2, (bytes) => bytes.writeUInt16LE(value as number));
      case 'i':
        return this.#number(4, (bytes) => bytes.writeInt32LE(value as number));
      case 'u':
      case 'h':
        return this.#number(4, (bytes) => bytes.writeUInt32LE(value as number));
      case 'x':
        return this.#number(8, (bytes) => bytes.writeBigInt64LE(value as bigint));
      case 't':
        return this.#number(8, (bytes) => bytes.writeBigUInt64LE(value as bigint));
      case 'd':
        return this.#number(8, (bytes) => bytes.writeDoubleLE(value as number));
      case 's':
      case 'o':
        return this.#text(value as string, 4);
      case 'g':
        return this.#text(value as string, 1);
      case 'v': {
        const variant = value as DbusVariant;
        this.value('g', variant.signature);
        return this.value(variant.signature, variant.value);
      }
      case '(':
      case '{':
        for (const [index, inner] of completeTypes(type.slice(1, -1)).entries())
          this.value(inner, (value as readonly DbusValue[])[index]!);
        return;
      default:
        this.#array(type.slice(1), value as readonly DbusValue[]);
    }
  }

  #array(type: string, values: readonly DbusValue[]): void {
    const length = Buffer.alloc(4);
    this.#push(length);
    // Not counted: what the first element's alignment takes.
    this.align(alignments[type[0]!]!);
    const start = this.#length;
    for (const value of values) this.value(type, value);
    length.writeUInt32LE(this.#length - start);
  }

  #text(text: string, lengthBytes: 1 | 4): void {
    const bytes = Buffer.from(text, 'utf8');
    this.#number(lengthBytes, (length) => length.writeUIntLE(bytes.length, 0, lengthBytes));
    this.#push(Buffer.concat([bytes, Buffer.of(0)]));
  }

  #number(lengthBytes: number, write: (bytes: Buffer) => void): void {
    const bytes = Buffer.alloc(lengthBytes);
    write(bytes);
    this.#push(bytes);
  }

  #push(bytes: Buffer): void {
    this.#parts.push(bytes);
    this.#length += bytes.length;
  }
}

class Reader {
  readonly #bytes: Buffer;
  #offset: number;

  constructor(bytes: Buffer, offset: number) {
    this.#bytes = bytes;
    this.#offset = offset;
  }

  value(type: string, depth = 0): DbusValue {
    if (depth > kMaximalDepth) throw new FormatError('message', 'is nested too deeply');
    this.#offset = aligned(this.#offset, alignments[type[0]!]!);
    switch (type[0]) {
      case 'y':
        return this.#take(1)[0]!;
      case 'b':
        return this.#take(4).readUInt32LE() !== 0;
      case 'n':
        return this.#take(2).readInt16LE();
      case 'q':
        return this.#take(2).readUInt16LE();
      case 'i':
        return this.#take(4).readInt32LE();
      case 'u':
      case 'h':
        return this.#take(4).readUInt32LE();
      case 'x':
        return this.#take(8).readBigInt64LE();
      case 't':
        return this.#take(8).readBigUInt64LE();
      case 'd':
        return this.#take(8).readDoubleLE();
      case 's':
      case 'o':
        return this.#text(this.#take(4).readUInt32LE());
      case 'g':
        return this.#text(this.#take(1)[0]!);
      case 'v': {
        const signature = this.#text(this.#take(1)[0]!);
        if (completeTypes(signature).length !== 1) throw new FormatError('variant', `is of type "${signature}"`);
        return { signature, value: this.value(signature, depth + 1) };
      }
      case '(':
      case '{':
        return completeTypes(type.slice(1, -1)).map((inner) => this.value(inner, depth + 1));
      default:
        return this.#array(type.slice(1), depth);
    }
  }

  #array(type: string, depth: number): DbusValue[] {
    const length = this.#take(4).readUInt32LE();
    const start = aligned(this.#offset, alignments[type[0]!]!);
    const end = start + length;
    if (end > this.#bytes.length) throw new FormatError('message', 'ends within an array');
    this.#offset = start;
    const values: DbusValue[] = [];
    while (this.#offset < end) values.push(this.value(type, depth + 1));
    return values;
  }

  #text(length: number): string {
    return this.#take(length + 1).toString('utf8', 0, length);
  }

  #take(length: number): Buffer {
    const end = this.#offset + length;
    if (end > this.#bytes.length) throw new FormatError('message', 'ends within a value');
    const taken = this.#bytes.subarray(this.#offset, end);
    this.#offset = end;
    return taken;
  }
}
