// Numbers out of the stats files that a checkpoint leaves in its work directory,
// ours and CRIU's alike.
import { readFileSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { readImage } from '../../oci-spec/images/image-file.js';
import type { stats_entry } from '../../oci-spec/images/messages.js';

export interface CheckpointStats {
  readonly frozenMs: number;
  readonly pagesWritten: number;
}

export function readCheckpointStats(workDirectory: string): CheckpointStats {
  const file = join(workDirectory, 'stats-dump');
  const entry = readImage('stats-dump', readFileSync(file))[0]?.message as stats_entry | undefined;
  if (entry?.dump === undefined) throw new Error(`cannot read ${file}: it holds no statistics of a checkpoint`);
  return { frozenMs: entry.dump.frozen_time / 1000, pagesWritten: Number(entry.dump.pages_written) };
}

export interface RestoreStats {
  /** From the first task to the moment when all are ready to run on. */
  readonly engineMs: number;
}

export function readRestoreStats(workDirectory: string): RestoreStats {
  const file = join(workDirectory, 'stats-restore');
  const entry = readImage('stats-restore', readFileSync(file))[0]?.message as stats_entry | undefined;
  if (entry?.restore === undefined) throw new Error(`cannot read ${file}: it holds no statistics of a restore`);
  return { engineMs: entry.restore.restore_time / 1000 };
}

/** Bytes of all files in a folder. */
export function sizeOf(directory: string): number {
  return readdirSync(directory).reduce((sum, name) => sum + statSync(join(directory, name)).size, 0);
}
