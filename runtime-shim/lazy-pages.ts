// A lazy restore as those who come later see it: who fills the container's
// memory while it runs, and how to wait for the end of that.
import { openSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Parked, Plan } from '../nativecore/index.js';
import type { PartialMessage } from '../oci-spec/protobuf/codec.js';
import { isAlive, pollUntil, readProcess } from './container/index.js';
import { kUserfaultfdDevice } from './engine/index.js';
import { StasisError, errnoCode, fileError } from './errors/index.js';

/** In the state directory, with which it goes. */
const kFileName = 'stasis-lazy-pages.json';
/** Hours of memory from a slow disk; a page process that hangs does not answer the program either. */
const kFillTimeoutMs = 600_000;
const kCloneNewUser = 0x10000000n;
const kCloneNewPid = 0x20000000n;

/** Before anything is made: what stands in the way of filling this tree while it runs. */
export function refuseLazyPages(goal: string, plan: PartialMessage<Plan>, userfaultfd: boolean): void {
  const refuse = (reason: string): never => {
    throw new StasisError({
      code: 'OPTION_NOT_BUILT',
      message: `cannot ${goal}: cannot use --lazy-pages: ${reason}`,
      hint: 'leave --lazy-pages out for a full restore',
    });
  };
  if (!userfaultfd) refuse('this kernel has no userfaultfd(2)');
  const flags = plan.tasks?.[0]?.cloneFlags ?? 0n;
  if ((flags & kCloneNewPid) === 0n)
    refuse('the container has no pid namespace of its own, so its processes could not be ended together');
  const unshares = (plan.tasks?.[0]?.phases ?? [])
    .flatMap(({ steps }) => steps ?? [])
    .filter(({ op }) => op === 'unshare');
  const user = [flags, ...unshares.map(({ args }) => args?.[0]?.immediate ?? 0n)];
  const hasDevice = (plan.externals ?? []).some(({ name }) => name === kUserfaultfdDevice);
  if (!hasDevice && user.some((value) => (BigInt(value) & kCloneNewUser) !== 0n))
    refuse(
      `the container has a user namespace, in which a userfaultfd that serves system calls is made through ${kUserfaultfdDevice} (Linux 6.1), and that cannot be opened`,
    );
}

/** Undefined: this host has none, or we may not open it. */
export function openUserfaultfdDevice(): number | undefined {
  try {
    return openSync(kUserfaultfdDevice, 'r+');
  } catch {
    return undefined; // refuseLazyPages() says what is missing
  }
}

/** The tree waits: from now on whoever checkpoints it knows whom to wait for. */
export function noteLazyPages(stateDirectory: string, parked: Parked): void {
  if (parked.lazyHostPid === 0) return;
  const path = join(stateDirectory, kFileName);
  const startTicks = readProcess(parked.lazyHostPid)?.startTicks ?? 0n;
  try {
    writeFileSync(path, JSON.stringify({ hostPid: parked.lazyHostPid, startTicks: String(startTicks) }), {
      mode: 0o600,
    });
  } catch (error) {
    throw fileError('cannot note who fills the memory', path, error);
  }
}

/** Memory that is not there yet would be missing in the images. */
export async function awaitLazyPages(goal: string, stateDirectory: string): Promise<void> {
  const filler = readFiller(join(stateDirectory, kFileName));
  if (filler === undefined) return;
  if (await pollUntil(() => !isAlive(filler.hostPid, filler.startTicks), kFillTimeoutMs)) return;
  throw new StasisError({
    code: 'DEADLINE',
    message: `cannot ${goal}: the memory of its lazy restore is still being filled by pid ${filler.hostPid} after ${kFillTimeoutMs / 1000} s`,
    subject: { hostPid: filler.hostPid },
    hint: 'try again when that process has ended',
  });
}

function readFiller(path: string): { readonly hostPid: number; readonly startTicks: bigint } | undefined {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    if (errnoCode(error) === 'ENOENT') return undefined;
    throw fileError('cannot read who fills the memory', path, error);
  }
  const match = /^\{"hostPid":(\d{1,9}),"startTicks":"(\d{1,19})"\}$/.exec(text);
  // Cut short or foreign: the flags of the mappings tell as well, and refuse.
  return match === null ? undefined : { hostPid: Number(match[1]), startTicks: BigInt(match[2] ?? '0') };
}
