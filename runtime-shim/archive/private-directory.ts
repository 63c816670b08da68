// A directory that is ours alone and for a while. Its name tells whose it is, so
// that what a killed predecessor left is removed by whoever comes next.
import { lstatSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { fileError } from '../errors/index.js';

const pattern = /^\.stasis-(\d+)-[0-9a-f]{8}\./;

export class PrivateDirectory {
  readonly path: string;

  /** `what` becomes a part of its name. */
  constructor(parent: string, what: string) {
    this.path = join(parent, privateName(what));
    try {
      removeAbandoned(parent);
      // Fails if it exists, whatever is there.
      mkdirSync(this.path, { mode: 0o700 });
    } catch (error) {
      throw fileError(`cannot make a directory in ${parent}`, parent, error);
    }
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}

/** ".stasis-PID-RANDOM.what" */
export function privateName(what: string): string {
  return `.stasis-${process.pid}-${randomBytes(4).toString('hex')}.${what}`;
}

/** Of processes that run no more. */
export function removeAbandoned(parent: string): void {
  for (const name of readdirSync(parent)) {
    const owner = pattern.exec(name)?.[1];
    if (owner === undefined || statSync(`/proc/${owner}`, { throwIfNoEntry: false }) !== undefined) continue;
    const path = join(parent, name);
    // In a directory for everybody, another user's is not ours to remove.
    if (lstatSync(path, { throwIfNoEntry: false })?.uid === process.geteuid?.())
      rmSync(path, { recursive: true, force: true });
  }
}
