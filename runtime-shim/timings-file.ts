// stasis-timings.json: where the time of a checkpoint went. It lies beside the
// images and is none of them: nothing depends on it, and nothing vouches for it.
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { Timing } from '../nativecore/index.js';
import { JsonReader, parseJson } from '../oci-spec/json.js';

export const kTimingsName = 'stasis-timings.json';
const kVersion = 1;
const kMaxBytes = 1 << 16;
const kMaxPhases = 200;
const kMaxNameLength = 40;

/** A phase; microseconds since the checkpoint began. */
export interface TimelineEntry {
  readonly phase: string;
  readonly startUs: number;
  readonly durationUs: number;
}

/** The whole is the entry "total", where there is one, and the last. */
export function timelineOf(timings: readonly Timing[]): TimelineEntry[] {
  const zero = timings.reduce<bigint | undefined>(
    (first, { startNs }) => (first === undefined || startNs < first ? startNs : first),
    undefined,
  );
  return timings.map(({ phase, startNs, endNs }) => ({
    phase,
    startUs: Number((startNs - (zero ?? 0n)) / 1000n),
    durationUs: Number((endNs - startNs) / 1000n),
  }));
}

export function timingsFile(timings: readonly Timing[]): { readonly name: string; readonly bytes: Uint8Array } {
  const document = { version: kVersion, phases: timelineOf(timings) };
  return { name: kTimingsName, bytes: Buffer.from(`${JSON.stringify(document, undefined, 1)}\n`) };
}

/** undefined: there is none, or it is not what it should be. */
export function readTimings(directory: string): TimelineEntry[] | undefined {
  const path = join(directory, kTimingsName);
  const found = statSync(path, { throwIfNoEntry: false });
  if (found?.isFile() !== true || found.size > kMaxBytes) return undefined;
  try {
    return parseTimings(readFileSync(path, 'utf8'));
  } catch {
    return undefined;
  }
}

/** Throws FormatError. */
export function parseTimings(text: string): TimelineEntry[] | undefined {
  const document = new JsonReader(parseJson(text));
  if (document.field('version').integer() !== kVersion) return undefined;
  const phases = document.field('phases').listOr((entry) => ({
    phase: entry.field('phase').string().slice(0, kMaxNameLength),
    startUs: entry.field('startUs').integer(),
    durationUs: entry.field('durationUs').integer(),
  }));
  return phases.slice(0, kMaxPhases);
}
