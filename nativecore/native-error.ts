// What native code reports of a failure, as an Error. Its text is data for a
// log; the sentence for people is made in runtime-shim/errors.
import type { Failure } from './schema/messages.js';

export class NativeError extends Error {
  readonly failure: Failure;

  constructor(failure: Failure) {
    super([failure.what, failure.call, failure.reason].filter((part) => part !== '').join(': '));
    this.name = 'NativeError';
    this.failure = failure;
  }

  /** The core has gone without an answer. */
  static ofDeath(how: string): NativeError {
    return new NativeError({ ...emptyFailure, reason: 'core_died', what: `stasis-core ${how}` });
  }

  static ofProtocol(what: string): NativeError {
    return new NativeError({ ...emptyFailure, reason: 'protocol', what });
  }
}

const emptyFailure: Failure = {
  reason: '',
  what: '',
  call: '',
  errorNumber: 0,
  hostPid: 0,
  targetFd: -1,
  path: '',
  address: 0n,
  context: [],
  suppressed: [],
  phase: '',
  log: [],
};
