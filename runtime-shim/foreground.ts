// Staying with a restored tree: it becomes our child when the core goes, its
// signals are ours to pass on, its exit status is ours to return.
import { constants } from 'node:os';
import { nativeBinding } from '../nativecore/index.js';

/** Orphans of our descendants become our children. */
export function becomeSubreaper(): void {
  nativeBinding().setChildSubreaper(true);
}

/** About ourselves, or not to be caught. */
const ownSignals: readonly string[] = [
  'SIGKILL',
  'SIGSTOP',
  'SIGCHLD',
  'SIGPIPE',
  'SIGURG',
  'SIGPROF',
  'SIGSEGV',
  'SIGBUS',
  'SIGFPE',
  'SIGILL',
];

/** Precondition: becomeSubreaper() was called before the tree was restored. Returns the exit status as a shell has it. */
export async function stayWith(initHostPid: number, kept: readonly NodeJS.Signals[] = []): Promise<number> {
  for (const signal of Object.keys(constants.signals) as NodeJS.Signals[]) {
    if (!ownSignals.includes(signal) && !kept.includes(signal)) forward(signal, initHostPid);
  }
  const { code, signal } = await nativeBinding().waitForExit(initHostPid);
  return signal === 0 ? code : 128 + signal;
}

function forward(signal: NodeJS.Signals, hostPid: number): void {
  process.removeAllListeners(signal);
  try {
    process.on(signal, () => {
      try {
        process.kill(hostPid, signal);
      } catch {
        // It has just ended; waitForExit says so.
      }
    });
  } catch {
    // libuv keeps a few signals for itself.
  }
}
