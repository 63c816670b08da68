// stasis-core as a conversation: started with its descriptors in place,
// spoken to in typed messages. When this object goes, the core sees end of
// file and rolls back; so does it when we are killed.
import { spawn, type ChildProcess } from 'node:child_process';
import type { Duplex } from 'node:stream';
import { makeCodec, type Codec, type PartialMessage } from '../oci-spec/protobuf-codec.js';
import { FrameReader, frame } from './frames.js';
import { findLocations } from './locations.js';
import { NativeError } from './native-error.js';
import { messageTable, type FromCore, type Messages, type Progress, type ToCore } from './schema/messages.js';

let codec: Codec<Messages> | undefined;

/** The codec of the boundary messages, made once per process. */
export function boundaryCodec(): Codec<Messages> {
  codec ??= makeCodec<Messages>(messageTable);
  return codec;
}

/** First descriptor number of plan externals in the core. */
export const kFirstExternalDescriptor = 10;

export interface CoreOptions {
  readonly subcommand: 'capture' | 'execute';
  /** Becomes descriptors 1 and 2 of the core. */
  readonly logFd: number;
  /** Becomes descriptor 4. */
  readonly imagesFd: number;
  /** Own descriptors that become 10, 11, ... in this order. */
  readonly externals?: readonly number[];
  /** Aborting ends our side of the conversation; the core rolls back and the next receive throws. */
  readonly signal?: AbortSignal;
  /** Called between replies, and seldom. */
  readonly onProgress?: (progress: Progress) => void;
}

type Reply = keyof FromCore;

export class CoreProcess {
  readonly #child: ChildProcess;
  readonly #socket: Duplex;
  readonly #received: FromCore[] = [];
  readonly #exited: Promise<string>;
  #wake: (() => void) | undefined;
  #closed = false;
  #broken: Error | undefined;

  constructor(options: CoreOptions) {
    const { core } = findLocations();
    const externals = options.externals ?? [];
    const holes = externals.length === 0 ? [] : new Array<'ignore'>(kFirstExternalDescriptor - 5).fill('ignore');
    this.#child = spawn(core, [options.subcommand], {
      // A terminal's signals are for us; the core hears of them through end of file.
      detached: true,
      // The target must not find our caller's secrets in /proc/PID/environ of the core; orders of fault tests are none.
      env: faultOrders(process.env),
      cwd: '/',
      stdio: ['ignore', options.logFd, options.logFd, 'pipe', options.imagesFd, ...holes, ...externals],
    });
    this.#exited = new Promise((resolve) => {
      this.#child.once('error', (error) => resolve(`could not be started: ${error.message}`));
      this.#child.once('exit', (code, signal) =>
        resolve(signal === null ? `exited with status ${code}` : `was killed by ${signal}`),
      );
    });
    this.#socket = this.#child.stdio[3] as unknown as Duplex;
    const reader = new FrameReader();
    this.#socket.on('data', (chunk: Buffer) => {
      reader.push(chunk);
      try {
        for (let body = reader.next(); body !== undefined; body = reader.next()) {
          const message = boundaryCodec().decode('stasis.control.FromCore', body);
          if (message.progress === undefined) this.#received.push(message);
          else options.onProgress?.(message.progress);
        }
      } catch (error) {
        this.#broken = error as Error;
        this.#socket.destroy();
      }
      this.#notify();
    });
    // EPIPE and ECONNRESET say the same as end of file: the core has gone.
    this.#socket.on('error', () => undefined);
    this.#socket.on('close', () => this.#markClosed());
    this.#socket.on('end', () => this.#markClosed());
    this.#child.once('error', () => this.#markClosed());
    options.signal?.addEventListener('abort', () => this.#socket.end(), { once: true });
    if (options.signal?.aborted === true) this.#socket.end();
  }

  get hostPid(): number | undefined {
    return this.#child.pid;
  }

  send(message: PartialMessage<ToCore>): void {
    this.#socket.write(frame(boundaryCodec().encode('stasis.control.ToCore', message)));
  }

  /** Waits for the one reply that may come next; `failed`, another reply or the core's death throw NativeError. */
  async receive<Kind extends Reply>(kind: Kind): Promise<NonNullable<FromCore[Kind]>> {
    for (;;) {
      const message = await this.#next();
      const wanted = message[kind];
      if (wanted !== undefined) return wanted as NonNullable<FromCore[Kind]>;
      if (message.failed !== undefined) throw new NativeError(message.failed);
      throw NativeError.ofProtocol(`the core answered ${Object.keys(message).join(', ')} where ${kind} was due`);
    }
  }

  /** Ends the conversation and waits until the core has gone; what it says on its way out is dropped. */
  async close(): Promise<void> {
    this.#socket.end();
    this.#socket.resume();
    await this.#exited;
    this.#socket.destroy();
  }

  /** After `kept`: the core goes on without us, and we may end before it. */
  letGo(): void {
    this.#socket.destroy();
    this.#child.unref();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #next(): Promise<FromCore> {
    while (this.#received.length === 0) {
      if (this.#broken !== undefined)
        throw NativeError.ofProtocol(`the core sent what is no message: ${this.#broken.message}`);
      if (this.#closed) throw NativeError.ofDeath(await this.#exited);
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    return this.#received.shift()!;
  }

  #markClosed(): void {
    this.#closed = true;
    this.#notify();
  }

  #notify(): void {
    this.#wake?.();
    this.#wake = undefined;
  }
}

/** STASIS_FAULT_STEP and its kin: where a fault test wants the core to die or fail. */
function faultOrders(environment: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(environment).filter(([name]) => name.startsWith('STASIS_FAULT_')));
}
