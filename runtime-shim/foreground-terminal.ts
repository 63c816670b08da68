// A restored container's terminal in the foreground: what is typed at ours goes
// into it, what it shows goes to ours, and it has the size of our window.
//
//   Undo            our terminal's modes come back when we end, also by a signal that can be caught
//   If we die here  (SIGKILL) ours stays raw, as with every program that makes it so; the container's hangs up
import { ReadStream } from 'node:tty';
import { nativeBinding } from '../nativecore/index.js';

/** What the container has written and nobody has shown yet, once it has ended. */
const kDrainTimeoutMs = 1000;

export class ForegroundTerminal {
  readonly #master: ReadStream;
  readonly #masterFd: number;
  readonly #closed: Promise<void>;
  readonly #resize = (): void => this.#copySize();

  /** Takes the descriptor over. */
  constructor(masterFd: number) {
    this.#masterFd = masterFd;
    // It writes as well: a terminal is one stream in both directions.
    this.#master = new ReadStream(masterFd);
    this.#closed = new Promise((resolve) => this.#master.once('close', resolve));
    // EIO: nobody has the other side open any more.
    this.#master.on('error', () => this.#master.destroy());
    this.#master.on('data', (chunk: Buffer) => {
      if (!process.stdout.write(chunk)) {
        this.#master.pause();
        process.stdout.once('drain', () => this.#master.resume());
      }
    });
    this.#copySize();
    process.on('SIGWINCH', this.#resize);
    const { stdin } = process;
    if (stdin.isTTY) stdin.setRawMode(true);
    stdin.on('error', () => undefined);
    stdin.on('data', (chunk: Buffer) => {
      if (!this.#master.destroyed && !this.#master.write(chunk)) {
        stdin.pause();
        this.#master.once('drain', () => stdin.resume());
      }
    });
  }

  /** The container has ended: shows what is left, and gives our terminal back. */
  async end(): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    // Somebody outside may still have the other side open.
    const late = new Promise<void>((resolve) => (timer = setTimeout(resolve, kDrainTimeoutMs)));
    await Promise.race([this.#closed, late]);
    clearTimeout(timer);
    process.off('SIGWINCH', this.#resize);
    this.#master.destroy();
    const { stdin } = process;
    if (stdin.isTTY) stdin.setRawMode(false);
    stdin.destroy();
  }

  /** Ours may be no terminal: then the container's keeps the size that it had. */
  #copySize(): void {
    const ours = [process.stdin, process.stdout].find(({ isTTY }) => isTTY);
    if (ours === undefined || this.#master.destroyed) return;
    try {
      nativeBinding().copyWindowSize(ours.fd, this.#masterFd);
    } catch {
      // One of them has just gone.
    }
  }
}
