// The few facts about host processes that the container layer reads itself.
import { readFileSync } from 'node:fs';

export interface ProcessFacts {
  /** "R", "S", "T", "Z", ... */
  readonly state: string;
  readonly parentHostPid: number;
  readonly startTicks: bigint;
}

/** undefined: there is no such process. */
export function readProcess(hostPid: number): ProcessFacts | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${hostPid}/stat`, 'latin1');
  } catch {
    return undefined;
  }
  // The name is in parentheses and may contain anything, parentheses too: fields count from the last one.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return { state: fields[0]!, parentHostPid: Number(fields[1]), startTicks: BigInt(fields[19]!) };
}

/** The same process as when `startTicks` was noted, and not dead. */
export function isAlive(hostPid: number, startTicks: bigint): boolean {
  const facts = hostPid > 0 ? readProcess(hostPid) : undefined;
  return facts !== undefined && facts.startTicks === startTicks && facts.state !== 'Z' && facts.state !== 'X';
}

/** "" if it cannot be read. */
export function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
