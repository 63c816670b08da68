// The cgroup hierarchies of this lane, and what the tests have in them.
import { existsSync, readdirSync, readFileSync, rmdirSync, statfsSync } from 'node:fs';
import { join } from 'node:path';

const mountPoint = '/sys/fs/cgroup';
const CGROUP2_SUPER_MAGIC = 0x63677270;

/** 2 where /sys/fs/cgroup itself is a v2 tree, 1 for v1 controllers with or without a v2 tree beside them. */
export function cgroupVersion(): 1 | 2 {
  return statfsSync(mountPoint).type === CGROUP2_SUPER_MAGIC ? 2 : 1;
}

/** Roots of all hierarchies: one on v2; one a controller, and maybe `unified`, on v1. */
function hierarchyRoots(): string[] {
  if (cgroupVersion() === 2) return [mountPoint];
  return readdirSync(mountPoint).map((name) => join(mountPoint, name));
}

/** Directories that a cgroup path such as /stasis-e2e/x has in the hierarchies. */
export function cgroupDirectories(path: string): string[] {
  return hierarchyRoots()
    .map((root) => join(root, path))
    .filter((directory) => existsSync(directory));
}

/** Whether limits of that kind can be set: a hierarchy of its own on v1, a controller that nobody else holds on v2. */
export function hasController(name: string): boolean {
  if (cgroupVersion() === 1) return existsSync(join(mountPoint, name));
  return readFileSync(join(mountPoint, 'cgroup.controllers'), 'utf8').trim().split(' ').includes(name);
}

/** Whether the cgroup is frozen, by its own word. */
export function isFrozen(path: string): boolean {
  if (cgroupVersion() === 2) {
    return /^frozen 1$/m.test(readFileSync(join(mountPoint, path, 'cgroup.events'), 'utf8'));
  }
  return readFileSync(join(mountPoint, 'freezer', path, 'freezer.state'), 'utf8').trim() !== 'THAWED';
}

/** Empty if the cgroup is gone, or goes while its file is being read (ENODEV). */
function readUnlessRemoved(file: string): string {
  try {
    return readFileSync(file, 'utf8');
  } catch (error) {
    if (['ENOENT', 'ENODEV'].includes((error as NodeJS.ErrnoException).code ?? '')) return '';
    throw error;
  }
}

/** Pids in a cgroup (the freezer's on v1: every container has that one). */
export function processesIn(path: string): number[] {
  const directory = cgroupVersion() === 2 ? join(mountPoint, path) : join(mountPoint, 'freezer', path);
  return readUnlessRemoved(join(directory, 'cgroup.procs')).split('\n').filter(Boolean).map(Number);
}

/** Removes what is empty below and including the path; for the end of a run. */
export function removeCgroups(path: string): void {
  for (const directory of cgroupDirectories(path)) removeTree(directory);
}

function removeTree(directory: string): void {
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    if (entry.isDirectory()) removeTree(join(directory, entry.name));
  }
  try {
    rmdirSync(directory);
  } catch {
    // Not empty: the leak check has already said so.
  }
}
