// A failure that the core reported, as a sentence with code and remedy. The
// core's words are data here: reason picks the code, the rest fills it in.
import { errnoText } from './errno.js';
import { StasisError, type Subject } from './stasis-error.js';
import type { ErrorCode } from './codes.js';

/** The fields of nativecore's Failure that are used; structural, so that this folder needs nothing of nativecore. */
export interface NativeFailure {
  readonly reason: string;
  readonly what: string;
  readonly call: string;
  readonly errorNumber: number;
  readonly hostPid: number;
  readonly targetFd: number;
  readonly path: string;
  readonly address: bigint;
  readonly position?:
    | {
        readonly task: number;
        readonly phase: number;
        readonly step: number;
        readonly op: string;
        readonly result: bigint;
      }
    | undefined;
  readonly context: readonly string[];
  readonly suppressed: readonly NativeFailure[];
  readonly phase: string;
}

const ENOSPC = 28;
const EDQUOT = 122;
const ENOENT = 2;
const EAGAIN = 11;
const EEXIST = 17;
const EMFILE = 24;
const EADDRNOTAVAIL = 99;

/** `goal`: what failed as a whole, "checkpoint container \"web\"". `describeStep`: the printed line of a plan step. */
export function fromNative(
  failure: NativeFailure,
  goal: string,
  describeStep?: (position: NonNullable<NativeFailure['position']>) => string | undefined,
): StasisError {
  const step =
    failure.position === undefined ? undefined : (describeStep?.(failure.position) ?? defaultStep(failure.position));
  const subject: Subject = {
    ...(failure.hostPid > 0 ? { hostPid: failure.hostPid } : {}),
    ...(failure.targetFd >= 0 && failure.hostPid > 0 ? { targetFd: failure.targetFd } : {}),
    ...(failure.path === '' ? {} : { path: failure.path }),
    ...(failure.address === 0n ? {} : { address: failure.address }),
    ...(step === undefined ? {} : { step }),
  };
  const code = codeOf(failure);
  const hint = hintOf(code, failure);
  const why = [...failure.context].reverse().join(', ');
  return new StasisError({
    code,
    message: `cannot ${goal}: ${sentence(failure, step)}`,
    subject,
    ...(why === '' ? {} : { why }),
    ...(hint === undefined ? {} : { hint }),
    suppressed: failure.suppressed.map((one) => fromNative(one, `clean up after that`)),
  });
}

function sentence(failure: NativeFailure, step: string | undefined): string {
  const parts = [failure.what === '' ? failure.reason.replaceAll('_', ' ') : failure.what];
  if (failure.hostPid > 0 && !parts[0]!.includes(String(failure.hostPid))) parts[0] += ` (pid ${failure.hostPid})`;
  if (step !== undefined) parts.push(step);
  if (failure.errorNumber !== 0)
    parts.push(`${failure.call === '' ? '' : `${failure.call}: `}${errnoText(failure.errorNumber)}`);
  return parts.join(': ');
}

function defaultStep(position: NonNullable<NativeFailure['position']>): string {
  return `task ${position.task}, phase ${position.phase}, step ${position.step} (${position.op})`;
}

function codeOf(failure: NativeFailure): ErrorCode {
  // inotify_add_watch(2): no space means a limit of the user's.
  if (failure.call === 'inotify_add_watch') return 'CORE_FAILED';
  if (failure.errorNumber === ENOSPC || failure.errorNumber === EDQUOT || failure.reason === 'no_space')
    return 'NO_SPACE';
  // clone3(2): a pid of set_tid is taken.
  if (failure.call === 'clone3' && failure.errorNumber === EEXIST) return 'PID_TAKEN';
  switch (failure.reason) {
    case 'task_gone':
      return 'TASK_GONE';
    case 'deadline':
      return 'DEADLINE';
    case 'unsupported':
      return 'CAPTURE_TASK_UNSUPPORTED';
    case 'corrupt':
    case 'truncated':
      return 'IMAGE_CORRUPT';
    case 'mismatch':
      return 'IMAGE_MISMATCH';
    case 'bad_request':
    case 'bad_plan':
    case 'protocol':
    case 'bug':
      return 'BUG';
    default:
      return 'CORE_FAILED';
  }
}

function hintOf(code: ErrorCode, failure: NativeFailure): string | undefined {
  switch (code) {
    case 'NO_SPACE':
      return 'free space there, or give a directory on another file system';
    case 'TASK_GONE':
      return 'a process of the container ended meanwhile; try again';
    case 'IMAGE_CORRUPT':
    case 'IMAGE_MISMATCH':
      return 'use another copy of the checkpoint';
    case 'DEADLINE':
      return 'the machine may be overloaded; try again';
    case 'PID_TAKEN':
      return 'a process with that pid is there already: end it, or restore in a pid namespace of its own';
    default:
      if (failure.call === 'inotify_init1' && failure.errorNumber === EMFILE)
        return 'raise the sysctl fs.inotify.max_user_instances, or end what has inotify instances';
      if (failure.call === 'inotify_add_watch' && failure.errorNumber === ENOSPC)
        return 'raise the sysctl fs.inotify.max_user_watches, or end what watches so many files';
      if (failure.call === 'inotify_add_watch' && failure.errorNumber === ENOENT)
        return 'put the watched file where it was: into the root file system, or a volume';
      // flock(2), fcntl(2) F_SETLK: somebody else holds a lock that excludes this one.
      if ((failure.call === 'flock' || failure.call === 'fcntl') && failure.errorNumber === EAGAIN)
        return 'another process holds a lock on that file: let it release the lock, or end it, and restore again';
      if (failure.reason === 'connection' && failure.errorNumber === EADDRNOTAVAIL)
        return failure.call === 'bind'
          ? 'restore into a network that has the address, or with --tcp-close'
          : 'that connection exists here already: end it, or restore with --tcp-close';
      if (failure.reason === 'connection') return 'check the network of the container, or restore with --tcp-close';
      // bind(2): an address of no interface in the network namespace.
      if (failure.call === 'bind' && failure.errorNumber === EADDRNOTAVAIL)
        return 'restore into a network that has the address, or let the program listen on all addresses';
      if (failure.position !== undefined && failure.errorNumber === ENOENT) {
        return 'the root file system or a mount of the bundle may not be the one that the container had';
      }
      return failure.reason === 'core_died' ? 'see the log in the work directory; nothing was changed' : undefined;
  }
}
