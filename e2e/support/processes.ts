// Facts about processes, from /proc.
import { readFileSync, readdirSync, readlinkSync } from 'node:fs';

/** State letter of a process (R, S, D, T, t, Z), or undefined if there is none. */
export function processState(hostPid: number): string | undefined {
  return statFields(hostPid)?.[0];
}

/** Start time in clock ticks since boot: tells two processes with the same pid apart. */
export function startTicks(hostPid: number): number | undefined {
  const field = statFields(hostPid)?.[19];
  return field === undefined ? undefined : Number(field);
}

export function isAlive(hostPid: number): boolean {
  const state = processState(hostPid);
  return state !== undefined && state !== 'Z' && state !== 'X';
}

/** Pids of all processes for which `wanted` holds. */
export function processesWhere(wanted: (hostPid: number) => boolean): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => wanted(pid));
}

export function processesInCgroup(fragment: string): number[] {
  return processesWhere((pid) => {
    if (processState(pid) === 'Z') return false;
    return (readOrEmpty(`/proc/${pid}/cgroup`) ?? '').includes(fragment);
  });
}

export function processesOfProgram(program: string): number[] {
  return processesWhere((pid) => programOf(pid) === program);
}

/** Path of the executable; undefined for kernel threads and processes that have gone. */
export function programOf(hostPid: number): string | undefined {
  try {
    return readlinkSync(`/proc/${hostPid}/exe`);
  } catch {
    return undefined;
  }
}

/** Who traces the process, 0 if nobody. */
export function tracerOf(hostPid: number): number {
  return Number(/^TracerPid:\s*(\d+)/m.exec(readOrEmpty(`/proc/${hostPid}/status`))?.[1] ?? 0);
}

/** Children of a process, all threads' included. */
export function childrenOf(hostPid: number): number[] {
  try {
    return readdirSync(`/proc/${hostPid}/task`).flatMap((tid) =>
      readOrEmpty(`/proc/${hostPid}/task/${tid}/children`).trim().split(/\s+/).filter(Boolean).map(Number),
    );
  } catch {
    return [];
  }
}

export function treeOf(hostPid: number): number[] {
  return [hostPid, ...childrenOf(hostPid).flatMap(treeOf)];
}

export function readOrEmpty(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

/** Fields of /proc/PID/stat after the command name, which may contain anything. */
function statFields(hostPid: number): string[] | undefined {
  const text = readOrEmpty(`/proc/${hostPid}/stat`);
  return text === '' ? undefined : text.slice(text.lastIndexOf(')') + 2).split(' ');
}
