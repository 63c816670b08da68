// The codec of CRIU's image messages, made once per process.
import { messageCodes, type Messages } from './images/messages.js';
import { makeCodec, type Codec } from './protobuf/codec.js';

let codec: Codec<Messages> | undefined;

export function imageCodec(): Codec<Messages> {
  codec ??= makeCodec<Messages>(messageCodes);
  return codec;
}

export type ImageMessages = Messages;
export type ImageMessageName = keyof Messages & string;
