// The container's freezer cgroup. We never freeze with it (a frozen cgroup
// outlives us); we only look, and thaw what has ended.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { readText } from './proc.js';

export interface Freezer {
  /** The file that freezes: v1 freezer.state, v2 cgroup.freeze. */
  readonly file: string;
  isFrozen(): boolean;
  thaw(): void;
}

/** undefined: the container has no freezer. */
export function freezerOf(cgroupPaths: ReadonlyMap<string, string>): Freezer | undefined {
  const v1 = cgroupPaths.get('freezer');
  if (v1 !== undefined) {
    const file = join(v1, 'freezer.state');
    return {
      file,
      isFrozen: () =>
        /^(FROZEN|FREEZING)/.test(readText(file)) && readText(join(v1, 'freezer.self_freezing')).trim() !== '0',
      thaw: () => writeIfThere(file, 'THAWED'),
    };
  }
  const v2 = cgroupPaths.get('');
  if (v2 === undefined) return undefined;
  const file = join(v2, 'cgroup.freeze');
  return { file, isFrozen: () => readText(file).trim() === '1', thaw: () => writeIfThere(file, '0') };
}

function writeIfThere(file: string, text: string): void {
  try {
    writeFileSync(file, text);
  } catch {
    // The cgroup has gone with its last process: nothing is frozen any more.
  }
}
