// A process tree without a container around it: one process that counts into a
// file, in a session of its own, with nothing else open.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { processState } from './processes.js';
import type { TestBed } from './test-bed.js';
import { waitFor } from './wait.js';

// One process: an orphan that nobody reaps would hold on to the number of its session.
const counter = '$| = 1; while (1) { print ++$n, "\\n"; select(undef, undef, undef, 0.01) }';

export class Tree {
  readonly pid: number;
  readonly #file: string;

  private constructor(pid: number, file: string) {
    this.pid = pid;
    this.#file = file;
  }

  /** Counts already; it has gone when the test has ended. `ownSession`: or it is in ours, as what a shell starts is. */
  static async start(bed: TestBed, { ownSession = true } = {}): Promise<Tree> {
    const path = join(bed.directory, 'output');
    const file = openSync(path, 'a');
    const child = spawn('/usr/bin/perl', ['-e', counter], {
      detached: ownSession,
      stdio: ['ignore', file, file],
      cwd: bed.directory,
      env: {},
    });
    closeSync(file);
    assert.ok(child.pid !== undefined);
    const tree = new Tree(child.pid, path);
    bed.onClose(async () => {
      try {
        process.kill(tree.pid, 'SIGKILL');
      } catch {
        // It has gone.
      }
      await tree.isGone();
    });
    await tree.countsOn();
    return tree;
  }

  output(): string {
    return readFileSync(this.#file, 'utf8');
  }

  async countsOn(): Promise<void> {
    const before = this.output().length;
    await waitFor('more numbers', () => (this.output().length > before + 8 ? true : undefined));
  }

  /** Not only dead: its pid is wanted. */
  async isGone(): Promise<void> {
    await waitFor('the tree to go', () => (processState(this.pid) === undefined ? true : undefined));
  }
}
