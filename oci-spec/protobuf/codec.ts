// Turns bytes into plain objects and back, with the functions that
// hack/generate.mjs makes of the .proto files. 64-bit integers are bigint; an
// absent optional field is undefined; a repeated field is always an array. No I/O.
import { newReader, newWriter, type Reader, type Writer } from './wire.js';

export interface Codec<Messages> {
  /** Throws if a required field is missing. */
  encode<Name extends keyof Messages & string>(name: Name, value: PartialMessage<Messages[Name]>): Uint8Array;
  /** The same, after what the writer has. */
  write<Name extends keyof Messages & string>(name: Name, value: PartialMessage<Messages[Name]>, writer: Writer): void;
  /** Throws if the bytes are not a message of that type; counts are bounded by the input's length. */
  decode<Name extends keyof Messages & string>(name: Name, bytes: Uint8Array): Messages[Name];
  /** The same, of a part of what the reader has: from where it is to `end`. */
  read<Name extends keyof Messages & string>(name: Name, reader: Reader, end: number): Messages[Name];
}

/** A message in which anything may be left out (proto3 defaults, proto2 optionals). */
export type PartialMessage<T> = T extends bigint | number | string | boolean | Uint8Array | undefined
  ? T
  : T extends readonly (infer Item)[]
    ? readonly PartialMessage<Item>[]
    : { [Key in keyof T]?: PartialMessage<T[Key]> | undefined };

/** Of each message: how it is written, and how it is read up to a place. */
export type MessageCodes<Messages> = {
  readonly [Name in keyof Messages]: readonly [
    (writer: Writer, message: PartialMessage<Messages[Name]>) => void,
    (reader: Reader, end: number, depth: number) => Messages[Name],
  ];
};

export function makeCodec<Messages>(codes: MessageCodes<Messages>): Codec<Messages> {
  return {
    encode: (name, value) => {
      const writer = newWriter();
      codes[name][0](writer, value);
      return writer.finish();
    },
    write: (name, value, writer) => codes[name][0](writer, value),
    decode: (name, bytes) => codes[name][1](newReader(bytes), bytes.length, 0),
    read: (name, reader, end) => codes[name][1](reader, end, 0),
  };
}
