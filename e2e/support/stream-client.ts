// Who sends numbers to e2e/targets/tcp_stream in a container, and checks what
// comes back.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { targetDirectory } from './paths.js';
import { isAlive } from './processes.js';
import type { TestBed } from './test-bed.js';
import { waitFor } from './wait.js';

/** Retransmissions of the peer back off while nobody answers. */
const kPatienceMs = 60_000;
const kFarther = 2 << 20;

export interface StreamTarget {
  /** Of the client's own files; no two of a test have the same. */
  readonly name?: string;
  /** Words before the command, such as those that enter a network namespace. */
  readonly enter: readonly string[];
  readonly address: string;
  readonly port: string;
}

export class StreamClient {
  readonly #output: string;
  readonly #stop: string;
  readonly #pid: number;

  private constructor(output: string, stop: string, pid: number) {
    this.#output = output;
    this.#stop = stop;
    this.#pid = pid;
  }

  /** Killed after the test where it has not ended. */
  static async start(bed: TestBed, { name = 'client', enter, address, port }: StreamTarget): Promise<StreamClient> {
    const output = join(bed.directory, `${name}.out`);
    const stop = join(bed.directory, `${name}.stop`);
    const words = [...enter, join(targetDirectory, 'tcp_stream'), 'client', address, port, stop];
    const file = openSync(output, 'a');
    const child = spawn(words[0]!, words.slice(1), { stdio: ['ignore', file, file] });
    closeSync(file);
    const client = new StreamClient(output, stop, child.pid!);
    bed.onClose(async () => await client.kill());
    await client.says(/READY/);
    return client;
  }

  said(): string {
    return readFileSync(this.#output, 'utf8');
  }

  async says(pattern: RegExp): Promise<void> {
    await waitFor(`${pattern} from the client`, () => (pattern.test(this.said()) ? true : undefined), {
      timeoutMs: kPatienceMs,
      seen: () => this.said().slice(-300),
    });
  }

  /** Some MiB further, both ways. */
  async goesOn(label = 'the checkpoint'): Promise<void> {
    const goal = this.reached() + kFarther;
    await waitFor(`after ${label}, the client to come to ${goal}`, () => (this.reached() >= goal ? true : undefined), {
      timeoutMs: kPatienceMs,
      seen: () => this.said().slice(-300),
    });
  }

  /** Nothing comes back any more. */
  async hasStopped(): Promise<void> {
    let before = -1;
    let looks = 0;
    await waitFor('the client to wait', () => {
      looks = this.reached() === before ? looks + 1 : 0;
      before = this.reached();
      return looks >= 30 ? true : undefined;
    });
  }

  /** Sends nothing, and has had everything back, while `action` runs. */
  async quietWhile(action: () => Promise<void>): Promise<void> {
    writeFileSync(`${this.#stop}.pause`, '');
    await this.hasStopped();
    await action();
    rmSync(`${this.#stop}.pause`);
  }

  async ends(): Promise<void> {
    writeFileSync(this.#stop, '');
    await this.says(/^(OK|FAIL.*)$/m);
    assert.match(this.said(), /^OK$/m);
  }

  async kill(): Promise<void> {
    if (!isAlive(this.#pid)) return;
    process.kill(this.#pid, 'SIGKILL');
    await waitFor('the client to go', () => (isAlive(this.#pid) ? undefined : true));
  }

  reached(): number {
    return Math.max(0, ...[...this.said().matchAll(/^at (\d+)$/gm)].map(([, number]) => Number(number)));
  }
}
