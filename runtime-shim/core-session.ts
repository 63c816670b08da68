// The core as a resource of a sequence: started with its log, spoken to,
// closed however the sequence ends; its failures as errors with a goal.
import { closeSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import {
  CoreProcess,
  NativeError,
  type CoreOptions,
  type FromCore,
  type Timing,
  type ToCore,
} from '../nativecore/index.js';
import type { PartialMessage } from '../oci-spec/protobuf/codec.js';
import { makeDirectory } from './directories.js';
import { fileError, fromNative, type NativeFailure } from './errors/index.js';
import type { OnProgress } from './phase-clock.js';

export interface SessionOptions {
  readonly subcommand: CoreOptions['subcommand'];
  /** What failed as a whole, for errors: `checkpoint container "web"`. */
  readonly goal: string;
  readonly log: LogFile;
  readonly imagesFd: number;
  readonly externals?: readonly number[];
  readonly signal?: AbortSignal;
  readonly onProgress?: OnProgress | undefined;
  /** The printed line of a plan step. */
  readonly describeStep?: (position: NonNullable<NativeFailure['position']>) => string | undefined;
}

export class CoreSession {
  #letGo = false;
  readonly #core: CoreProcess;
  readonly #options: SessionOptions;

  constructor(options: SessionOptions) {
    this.#options = options;
    this.#core = new CoreProcess({
      subcommand: options.subcommand,
      logFd: options.log.fd,
      imagesFd: options.imagesFd,
      ...(options.externals === undefined ? {} : { externals: options.externals }),
      ...(options.signal === undefined ? {} : { signal: options.signal }),
      onProgress: ({ phase, doneBytes, totalBytes }) =>
        options.onProgress?.({ phase, doneBytes: Number(doneBytes), totalBytes: Number(totalBytes) }),
    });
  }

  send(message: PartialMessage<ToCore>): void {
    this.#core.send(message);
  }

  async receive<Kind extends keyof FromCore>(kind: Kind): Promise<NonNullable<FromCore[Kind]>> {
    try {
      return await this.#core.receive(kind);
    } catch (error) {
      if (!(error instanceof NativeError)) throw error;
      this.#options.log.write(error.failure.log);
      throw fromNative(error.failure, this.#options.goal, this.#options.describeStep);
    }
  }

  /** Undoes everything; the core rolls back on its own if it cannot be asked. */
  async rollBack(): Promise<void> {
    try {
      this.#core.send({ abort: {} });
      await this.#core.receive('rolledBack');
    } catch (error) {
      if (!(error instanceof NativeError)) throw error;
      // It has failed or gone before: both mean that it has rolled back.
      this.#options.log.write(error.failure.log);
    }
  }

  /** The core has said `kept`: it does not need us any more. */
  letGo(): void {
    this.#letGo = true;
    this.#core.letGo();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#letGo) await this.#core.close();
  }
}

/** "freeze 0.412 ms, tasks 1.204 ms": where the time of the native part went. */
export function timingLine(what: string, timings: readonly Timing[]): string {
  const parts = timings.map(({ phase, startNs, endNs }) => `${phase} ${(Number(endNs - startNs) / 1e6).toFixed(3)} ms`);
  return `${what}: ${parts.join(', ')}`;
}

/** dump.log, restore.log: appended to, never replaced, because managers make it beforehand with a label of its own. */
export class LogFile {
  readonly fd: number;
  readonly path: string;

  constructor(directory: string, name: string) {
    this.path = join(directory, name);
    try {
      makeDirectory(directory, 0o700);
      this.fd = openSync(this.path, 'a', 0o600);
    } catch (error) {
      throw fileError(`cannot write the log ${this.path}`, this.path, error);
    }
  }

  write(lines: readonly string[]): void {
    if (lines.length === 0) return;
    try {
      writeSync(this.fd, `${lines.join('\n')}\n`);
    } catch {
      // A full disk fails the images, with a better message; the log is not what to fail for.
    }
  }

  [Symbol.dispose](): void {
    closeSync(this.fd);
  }
}
