// Who decides about TCP connections: an option of the command, else an
// annotation of the container, else they are refused.
import { randomUUID } from 'node:crypto';
import { FormatError } from '../oci-spec/json.js';
import { tcpRuleOf, type TcpRule } from '../oci-spec/tcp-rule.js';
import { StasisError } from './errors/index.js';

/** stasis.capture.CaptureRequest.Connections: inside, all, none. */
export const connectionsOf: Readonly<Record<TcpRule, number>> = { fail: 0, established: 1, close: 2 };

/** Names a table of nftables that outlives the checkpoint; whoever restores the images removes it. */
export function newConnectionLock(): string {
  // Of its own each time: what node keeps in store for the next ones could be in the image that we start from.
  return randomUUID({ disableEntropyCache: true });
}

/** CRIU's options, as a request or a configuration file has them. */
interface TcpOptions {
  readonly tcp_established?: boolean | undefined;
  readonly tcp_close?: boolean | undefined;
}

/** Both are there where a client gives both: closing is what it asks for beyond the usual. */
export function tcpRuleOfOptions(options: TcpOptions): TcpRule {
  return options.tcp_close === true ? 'close' : options.tcp_established === true ? 'established' : 'fail';
}

/** Of a configuration file; undefined: it says nothing of connections. */
export function configuredTcpRule(options: TcpOptions): TcpRule | undefined {
  const silent = options.tcp_established === undefined && options.tcp_close === undefined;
  return silent ? undefined : tcpRuleOfOptions(options);
}

export function decideTcpRule(
  goal: string,
  asked: TcpRule | undefined,
  annotations: Readonly<Record<string, string>>,
): TcpRule {
  try {
    return asked ?? tcpRuleOf(annotations) ?? 'fail';
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    throw new StasisError({
      code: 'USAGE',
      message: `cannot ${goal}: the annotation ${error.message}`,
      hint: 'correct the annotation, or give --tcp-established or --tcp-close',
    });
  }
}
