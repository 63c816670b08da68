// The outer side of a restored container's terminal. The tree makes the pair
// and sends its master through a channel that we hold the other end of; from
// there it goes to whoever asked for it, when the tree is complete and waits.
import { closeSync } from 'node:fs';
import { nativeBinding } from '../nativecore/index.js';
import { StasisError } from './errors/index.js';

/** The name that goes with the descriptor; receivers show it at most. */
const kMasterName = '/dev/ptmx';

export class ConsoleChannel {
  /** For the tree. */
  readonly innerFd: number;
  readonly #outerFd: number;

  constructor() {
    [this.#outerFd, this.innerFd] = nativeBinding().socketPair();
  }

  /** Hands over every master that the tree has sent; undefined if it has none. */
  async deliver(take: (masterFd: number) => void | Promise<void>): Promise<void> {
    for (;;) {
      const masterFd = nativeBinding().receiveDescriptor(this.#outerFd);
      if (masterFd === undefined) return;
      try {
        await take(masterFd);
      } finally {
        closeSync(masterFd);
      }
    }
  }

  /** The master of the container's terminal, for whoever stays with it; the caller closes it. */
  take(): number | undefined {
    return nativeBinding().receiveDescriptor(this.#outerFd);
  }

  [Symbol.dispose](): void {
    closeSync(this.#outerFd);
    closeSync(this.innerFd);
  }
}

/** A manager's console socket, connected before anything is made: its absence must not cost a container. */
export class ConsoleSocket {
  readonly #fd: number;
  readonly #path: string;

  constructor(path: string) {
    this.#path = path;
    this.#fd = this.#try(() => nativeBinding().connectUnix(path));
  }

  /** Does not wait until the manager takes it: some do only when we have ended. */
  send(masterFd: number): void {
    this.#try(() => nativeBinding().sendPacket(this.#fd, Buffer.from(kMasterName), [masterFd]));
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }

  #try<Result>(action: () => Result): Result {
    try {
      return action();
    } catch (error) {
      throw new StasisError({
        code: 'ENVIRONMENT',
        message: `cannot hand over the console: ${this.#path}: ${(error as Error).message}`,
        subject: { path: this.#path },
        hint: 'give --console-socket the path of a listening unix socket',
        cause: error,
      });
    }
  }
}
