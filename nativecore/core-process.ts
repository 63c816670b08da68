// stasis-core as a conversation: started with its descriptors in place,
// spoken to in typed messages. When this object goes, the core sees end of
// file and rolls back; so does it when we are killed.
import { spawn } from 'node:child_process';
import { Socket } from 'node:net';
import { constants } from 'node:os';
import type { Duplex } from 'node:stream';
import { makeCodec, type Codec, type PartialMessage } from '../oci-spec/protobuf/codec.js';
import { FrameReader, frame } from './frames.js';
import { findLocations } from './locations.js';
import { nativeBinding } from './native-binding.js';
import { NativeError } from './native-error.js';
import { messageCodes, type FromCore, type Messages, type Progress, type ToCore } from './schema/messages.js';

let codec: Codec<Messages> | undefined;

/** The codec of the boundary messages, made once per process. */
export function boundaryCodec(): Codec<Messages> {
  codec ??= makeCodec<Messages>(messageCodes);
  return codec;
}

/** First descriptor number of plan externals in the core. */
export const kFirstExternalDescriptor = 10;
/** Of those that sendmsg(2) takes at once (unix(7): 253), less the log and the images. */
const kMaximalPassedExternals = 248;

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
  readonly #core: RunningCore;
  readonly #socket: Duplex;
  readonly #received: FromCore[] = [];
  #wake: (() => void) | undefined;
  #closed = false;
  #broken: Error | undefined;

  constructor(options: CoreOptions) {
    this.#core = takeEarlyCore(options) ?? spawnCore(options);
    this.#socket = this.#core.socket;
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
    this.#core.onFailure(() => this.#markClosed());
    options.signal?.addEventListener('abort', () => this.#socket.end(), { once: true });
    if (options.signal?.aborted === true) this.#socket.end();
  }

  get hostPid(): number | undefined {
    return this.#core.hostPid;
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
    await this.#core.exited();
    this.#socket.destroy();
  }

  /** After `kept`: the core goes on without us, and we may end before it. */
  letGo(): void {
    this.#socket.destroy();
    this.#core.unref();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #next(): Promise<FromCore> {
    while (this.#received.length === 0) {
      if (this.#broken !== undefined)
        throw NativeError.ofProtocol(`the core sent what is no message: ${this.#broken.message}`);
      if (this.#closed) throw NativeError.ofDeath(await this.#core.exited());
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

/** However it was started. */
interface RunningCore {
  readonly hostPid: number | undefined;
  readonly socket: Duplex;
  /** How it ended, when it has. */
  exited(): Promise<string>;
  onFailure(action: () => void): void;
  unref(): void;
}

function spawnCore(options: CoreOptions): RunningCore {
  const externals = options.externals ?? [];
  const holes = externals.length === 0 ? [] : new Array<'ignore'>(kFirstExternalDescriptor - 5).fill('ignore');
  const child = spawn(findLocations().core, [options.subcommand], {
    // A terminal's signals are for us; the core hears of them through end of file.
    detached: true,
    // The target must not find our caller's secrets in /proc/PID/environ of the core; orders of fault tests are none.
    env: faultOrders(process.env),
    cwd: '/',
    stdio: ['ignore', options.logFd, options.logFd, 'pipe', options.imagesFd, ...holes, ...externals],
  });
  const exited = new Promise<string>((resolve) => {
    child.once('error', (error) => resolve(`could not be started: ${error.message}`));
    child.once('exit', (code, signal) => resolve(ending(code ?? 0, signal)));
  });
  return {
    hostPid: child.pid,
    socket: child.stdio[3] as unknown as Duplex,
    exited: () => exited,
    onFailure: (action) => void child.once('error', action),
    unref: () => child.unref(),
  };
}

/**
 * The launcher's (nativecore/launcher/early_core.h), which waits for its descriptors: to fork and to map pages again
 * that the fork has shared takes longer than the core's whole start. Only one, and only the first who asks gets it.
 */
function takeEarlyCore(options: CoreOptions): RunningCore | undefined {
  const [subcommand, ownFd, hostPid] = (process.env['STASIS_EARLY_CORE'] ?? '').split(':');
  const externals = options.externals ?? [];
  if (subcommand !== options.subcommand || externals.length > kMaximalPassedExternals) return undefined;
  delete process.env['STASIS_EARLY_CORE'];
  const passed = [options.logFd, options.imagesFd, ...externals];
  try {
    nativeBinding().sendPacket(Number(ownFd), Buffer.alloc(1), passed);
  } catch {
    // It has gone: what its end of file says is told when somebody asks it.
  }
  let exited: Promise<string> | undefined;
  return {
    hostPid: Number(hostPid),
    socket: new Socket({ fd: Number(ownFd), readable: true, writable: true }),
    // Not before somebody asks: a thread of the pool waits for it.
    exited: () => (exited ??= exitOf(Number(hostPid))),
    onFailure: () => undefined,
    unref: () => undefined,
  };
}

async function exitOf(hostPid: number): Promise<string> {
  const { code, signal } = await nativeBinding().waitForExit(hostPid);
  return ending(code, signal === 0 ? null : nameOfSignal(signal));
}

const ending = (code: number, signal: string | null): string =>
  signal === null ? `exited with status ${code}` : `was killed by ${signal}`;

const nameOfSignal = (number: number): string =>
  Object.entries(constants.signals).find(([, value]) => value === number)?.[0] ?? `signal ${number}`;

/** STASIS_FAULT_STEP and its kin: where a fault test wants the core to die or fail. */
function faultOrders(environment: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(environment).filter(([name]) => name.startsWith('STASIS_FAULT_')));
}
