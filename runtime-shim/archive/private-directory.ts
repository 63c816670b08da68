// A directory that is ours alone and for a while. Its name tells whose it is, so
// that what a killed predecessor left is removed by whoever comes next.
import { lstatSync, mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, statSync, type Stats } from 'node:fs';
import { createHash, randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { fileError } from '../errors/index.js';

const pattern = /^\.stasis-(\d+)-([0-9a-f]{8})-[0-9a-f]{8}\./;
// Nothing that we write stands still for so long before it is complete.
const kForeignLifetimeMs = 24 * 60 * 60 * 1000;

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

/** ".stasis-PID-SURROUNDINGS-RANDOM.what" */
export function privateName(what: string): string {
  return `.stasis-${process.pid}-${surroundings()}-${randomBytes(4).toString('hex')}.${what}`;
}

/** Of processes that run no more. */
export function removeAbandoned(parent: string): void {
  const here = surroundings();
  for (const name of readdirSync(parent)) {
    const [, owner, where] = pattern.exec(name) ?? [];
    if (owner === undefined) continue;
    const path = join(parent, name);
    const entry = lstatSync(path, { throwIfNoEntry: false });
    // In a directory for everybody, another user's is not ours to remove.
    if (entry === undefined || entry.uid !== process.geteuid?.()) continue;
    const abandoned =
      where === here ? statSync(`/proc/${owner}`, { throwIfNoEntry: false }) === undefined : isOld(entry);
    if (abandoned) rmSync(path, { recursive: true, force: true });
  }
}

/**
 * Where a pid means the same process as here: this boot of this machine, this pid namespace (pid_namespaces(7)). On a
 * file system that hosts share, or from within a container, others write whose pids say nothing to us.
 */
function surroundings(): string {
  const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  return createHash('sha256')
    .update(`${boot} ${readlinkSync('/proc/self/ns/pid')}`)
    .digest('hex')
    .slice(0, 8);
}

const isOld = (entry: Stats): boolean => Date.now() - entry.mtimeMs > kForeignLifetimeMs;
