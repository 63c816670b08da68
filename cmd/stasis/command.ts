// What a verb is, for main.ts; and what it gets.
import type { RuntimeOption } from '../../oci-spec/runtime-options.js';
import { usage, type Given } from '../arguments.js';

export interface CommandContext {
  readonly cwd: string;
  readonly environment: NodeJS.ProcessEnv;
  /** Aborted by SIGINT, SIGTERM and SIGHUP: the work is undone, then the verb fails. */
  readonly signal: AbortSignal;
  readonly globals: GlobalOptions;
  /** A note that goes to the log file, never to the streams: on restore those are the container's. */
  warn(message: string): void;
  print(text: string): void;
}

export interface GlobalOptions {
  /** Absolute; undefined: where the base runtime keeps its containers. */
  readonly root: string | undefined;
  readonly systemdCgroup: boolean;
}

export interface Command {
  readonly verb: string;
  readonly describe: string;
  /** Name of the one positional argument; undefined if there is none. */
  readonly positional?: string;
  readonly options: readonly RuntimeOption[];
  /** Runtime verbs fail with runc's status 1, whatever the kind of error. */
  readonly runtimeVerb: boolean;
  /** Returns the exit status. */
  run(given: Given, positional: string, context: CommandContext): Promise<number>;
}

export function text(given: Given, name: string): string | undefined {
  const value = given[name];
  return typeof value === 'string' && value !== '' ? value : undefined;
}

export function flag(given: Given, name: string): boolean {
  return given[name] === true;
}

/** A size in bytes: digits, then perhaps K, M, G or T (of 1024). */
export function bytesOption(given: Given, name: string): number | undefined {
  const value = text(given, name);
  if (value === undefined) return undefined;
  const match = /^(\d+)([KMGT]?)$/i.exec(value);
  const bytes =
    match === null
      ? NaN
      : Number(match[1]) * 1024 ** (match[2] === '' ? 0 : 'KMGT'.indexOf(match[2]!.toUpperCase()) + 1);
  if (match === null || !Number.isSafeInteger(bytes))
    throw usage(`cannot use --${name} ${value}: it is no number of bytes`);
  return bytes;
}
