// The codec of CRIU's image messages, made once per process.
import { messageTable, type Messages } from './images/messages.js';
import { makeCodec, type Codec } from './protobuf-codec.js';

let codec: Codec<Messages> | undefined;

export function imageCodec(): Codec<Messages> {
  codec ??= makeCodec<Messages>(messageTable);
  return codec;
}

export type ImageMessages = Messages;
export type ImageMessageName = keyof Messages & string;
