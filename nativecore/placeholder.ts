// A process that does nothing but be there. It ends when we end it, and when we
// are killed: it waits for the end of its input, which only we have.
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { findLocations } from './locations.js';
import { NativeError } from './native-error.js';

export class Placeholder {
  readonly #child: ChildProcess;
  readonly #exited: Promise<unknown>;

  private constructor(child: ChildProcess) {
    this.#child = child;
    this.#exited = once(child, 'exit');
  }

  static start(): Placeholder {
    // A session of its own: a terminal's signals are for us.
    const child = spawn(findLocations().core, ['hold'], {
      detached: true,
      env: {},
      cwd: '/',
      stdio: ['pipe', 'ignore', 'ignore'],
    });
    child.on('error', () => undefined);
    child.stdin!.on('error', () => undefined);
    if (child.pid === undefined) throw NativeError.ofDeath('could not be started');
    return new Placeholder(child);
  }

  get hostPid(): number {
    return this.#child.pid!;
  }

  /** From now on it does not end before it has been moved into another cgroup, even if we are killed. */
  asked(): void {
    this.#child.stdin!.write('a');
  }

  /** Whether it has been moved or will not be: it ends when we do. */
  answered(): void {
    this.#child.stdin!.write('d');
  }

  /** Precondition: nobody has been asked to move it, or has answered. */
  async end(): Promise<void> {
    this.#child.stdin!.end();
    await this.#exited;
  }
}
