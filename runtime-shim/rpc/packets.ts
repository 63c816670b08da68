// CRIU's remote procedure calls on the wire: one message per packet of a
// SOCK_SEQPACKET socket, in both directions.
import { nativeBinding } from '../../nativecore/index.js';
import { imageCodec, type ImageMessages } from '../../oci-spec/codecs.js';
import { criu_req_type } from '../../oci-spec/images/messages.js';
import type { PartialMessage } from '../../oci-spec/protobuf/codec.js';
import { StasisError } from '../errors/index.js';

export type RpcRequest = ImageMessages['criu_req'];
export type RpcOptions = ImageMessages['criu_opts'];
/** As a client or a command line gives them: what is not said has its default. */
export type RequestedOptions = PartialMessage<RpcOptions>;
export type RpcResponse = PartialMessage<ImageMessages['criu_resp']>;

export function completeOptions(options: RequestedOptions): RpcOptions {
  const codec = imageCodec();
  const complete = codec.decode('criu_req', codec.encode('criu_req', { type: criu_req_type.EMPTY, opts: options }));
  if (complete.opts === undefined) throw new Error('options were lost');
  return complete.opts;
}

/** Tells the client that a moment has come, and waits until it has done what it does then. */
export type Notify = (script: string, about?: { readonly hostPid?: number; readonly ownFd?: number }) => void;

export class RpcSocket {
  readonly #fd: number;
  /** Whose descriptor numbers the requests speak of. */
  readonly clientHostPid: number;

  constructor(ownFd: number) {
    this.#fd = ownFd;
    this.clientHostPid = nativeBinding().peerPid(ownFd);
  }

  /** undefined: the client has gone. Throws on what is no request. */
  receive(): RpcRequest | undefined {
    const bytes = nativeBinding().receivePacket(this.#fd);
    return bytes === undefined ? undefined : imageCodec().decode('criu_req', bytes);
  }

  send(response: RpcResponse, ownFds: readonly number[] = []): void {
    nativeBinding().sendPacket(this.#fd, Buffer.from(imageCodec().encode('criu_resp', response)), ownFds);
  }

  notify(script: string, about: { readonly hostPid?: number; readonly ownFd?: number } = {}): void {
    this.send(
      {
        type: criu_req_type.NOTIFY,
        success: true,
        notify: { script, ...(about.hostPid === undefined ? {} : { pid: about.hostPid }) },
      },
      about.ownFd === undefined ? [] : [about.ownFd],
    );
    const answer = this.receive();
    if (answer?.type === criu_req_type.NOTIFY && answer.notify_success === true) return;
    throw new StasisError({
      code: 'ENVIRONMENT',
      message: `cannot go on: the client did not agree to "${script}"${answer === undefined ? ', it has gone' : ''}`,
      hint: "see the client's own log",
    });
  }
}
