// What a checkpoint is asked for and what it answers.
import type { Timing } from '../nativecore/index.js';
import type { TcpRule } from '../oci-spec/tcp-rule.js';
import type { EncodedImages, EncodeOptions } from './engine/index.js';
import type { ArchiveTarget } from './archive-output.js';
import { StasisError, type Degradation } from './errors/index.js';
import type { OnProgress } from './phase-clock.js';

export interface ArchiveRequest {
  readonly target: ArchiveTarget;
  readonly ignoreRootfs: boolean;
  /** Absolute: what the root file system was before the container changed it, where that is no overlay. */
  readonly lower: string | undefined;
  /** Image that the container was made from; "" if nobody said. */
  readonly image: string;
}

export interface PageCompression {
  readonly codec: 'lz4' | 'zstd';
  readonly level: number;
}

export interface CheckpointOptions {
  /** Absolute. */
  readonly imagePath: string;
  /** In place of imagePath. */
  readonly archive?: ArchiveRequest;
  /** Where the log and the statistics go; the images' directory if undefined. */
  readonly workPath: string | undefined;
  /** Name of the log, if it is not dump.log. */
  readonly logName?: string;
  readonly leaveRunning: boolean;
  /** Of the page files; plain if undefined. */
  readonly pageCompression?: PageCompression;
  /** Page files are written past the page cache, where that can be done. */
  readonly directIo?: boolean;
  /** Memory only, for a later checkpoint that names this one as its parent; with leaveRunning. */
  readonly preDump?: boolean;
  /** Keep note of what changes, for a later checkpoint that names this one; a tree that runs on only. */
  readonly trackMemory?: boolean;
  /** Images that unchanged pages are left to; absolute, or relative to imagePath. */
  readonly parentPath?: string;
  /** Whether success waits until the images are on the disk. */
  readonly sync: boolean;
  /** How long the target may be frozen until everything but memory is read. */
  readonly deadlineMs: number;
  readonly tmpfsLimitBytes: bigint;
  readonly encode: Pick<EncodeOptions, 'shellJob' | 'externalUnixSockets'>;
  /** What an option says of TCP connections; undefined: the container's annotation says it. */
  readonly tcp?: TcpRule | undefined;
  readonly signal?: AbortSignal;
  /** Told seldom, and at the end of each part that it is told of. Images in a directory only. */
  readonly onProgress?: OnProgress | undefined;
}

export const checkpointDefaults = {
  sync: true,
  deadlineMs: 10_000,
  tmpfsLimitBytes: 1n << 30n,
} as const;

export interface CheckpointResult {
  readonly imagePath: string;
  readonly imageBytes: number;
  readonly summary: EncodedImages['summary'];
  readonly degradations: readonly Degradation[];
  /** What went another way than usual, without loss. */
  readonly remarks: readonly string[];
  /** Of private and shared memory. */
  readonly pages: { readonly written: number; readonly leftToParent: number };
  /** Whether page files were written past the page cache. */
  readonly directIo: boolean;
  readonly timings: readonly Timing[];
}

/** All blockers in one error; one alone is itself the error. */
export function refuseObjections(goal: string, objections: readonly StasisError[]): void {
  const [first, ...rest] = objections;
  if (first === undefined) return;
  if (rest.length === 0) throw first;
  throw new StasisError({
    code: first.code,
    message: `cannot ${goal}: ${objections.length} things stand in the way: ${allInOne(objections)}`,
    subject: first.subject,
    ...(first.why === undefined ? {} : { why: first.why }),
    ...(first.hint === undefined ? {} : { hint: first.hint }),
    objections,
  });
}

const kToldAtMost = 5;

/** Managers show one sentence and nothing else: it has to name everything, within reason. */
function allInOne(objections: readonly StasisError[]): string {
  const told = objections.slice(0, kToldAtMost).map(({ message }) => message.replace(/^cannot \w+: /, ''));
  const rest = objections.length - told.length;
  return [...told, ...(rest > 0 ? [`and ${rest} more`] : [])].join('; ');
}
