// How much memory may be copied on write while a running container is saved:
// what its cgroups and the host have left. Every page that the container
// changes meanwhile exists twice, and the second one counts as its own.
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { readText } from './proc.js';

/** What a v1 memory cgroup says that has no limit: the largest multiple of a page below 2^63, or more. */
const kUnlimited = 1n << 62n;

/** Bytes; `cgroupPaths`: controller ("" on v2) -> directory. */
export function copyOnWriteBytes(cgroupPaths: ReadonlyMap<string, string>): bigint {
  const rooms = [hostRoom()];
  const v1 = cgroupPaths.get('memory');
  const v2 = cgroupPaths.get('');
  if (v1 !== undefined) rooms.push(...roomsUpwards(v1, roomOfV1));
  if (v2 !== undefined) rooms.push(...roomsUpwards(v2, roomOfV2));
  return rooms.reduce((least, room) => (room < least ? room : least));
}

/** MemAvailable counts what could be taken back from caches; half of it stays for everybody else. */
function hostRoom(): bigint {
  const available = /^MemAvailable:\s+(\d+) kB$/m.exec(readText('/proc/meminfo'))?.[1];
  return available === undefined ? kUnlimited : (BigInt(available) << 10n) / 2n;
}

/** Limits hold for everything below: those of the parents count, too. */
function roomsUpwards(directory: string, roomOf: (directory: string) => bigint): bigint[] {
  const rooms: bigint[] = [];
  for (let at = directory; existsSync(join(at, 'cgroup.procs')); at = dirname(at)) {
    const room = roomOf(at);
    rooms.push(room < 0n ? 0n : room);
  }
  return rooms;
}

function roomOfV1(directory: string): bigint {
  const limit = number(join(directory, 'memory.limit_in_bytes'));
  if (limit === undefined || limit >= kUnlimited) return kUnlimited;
  return limit - (number(join(directory, 'memory.usage_in_bytes')) ?? 0n) + reclaimable(directory, 'total_');
}

function roomOfV2(directory: string): bigint {
  const limit = number(join(directory, 'memory.max')); // "max" is no number
  if (limit === undefined) return kUnlimited;
  return limit - (number(join(directory, 'memory.current')) ?? 0n) + reclaimable(directory, '');
}

/** Page cache of files: memory.stat, both versions. */
function reclaimable(directory: string, prefix: string): bigint {
  const stat = readText(join(directory, 'memory.stat'));
  return ['inactive_file', 'active_file'].reduce((sum, name) => {
    const value = new RegExp(`^${prefix}${name} (\\d+)$`, 'm').exec(stat)?.[1];
    return sum + BigInt(value ?? 0);
  }, 0n);
}

function number(file: string): bigint | undefined {
  const text = readText(file).trim();
  return /^\d+$/.test(text) ? BigInt(text) : undefined;
}
