// The cgroup of a container that is being restored: made where runc's cgroupfs
// driver would make it, limits set before anything runs in it, removed again
// if the restore fails. v1, v2 and hybrid hierarchies.
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  rmdirSync,
  statfsSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { nativeBinding } from '../../nativecore/index.js';
import { containerDeviceRules } from '../../oci-spec/devices.js';
import type { CgroupPlace, RuncDialect } from '../../oci-spec/libcontainer-config.js';
import type { RuntimeConfig, SpecResources } from '../../oci-spec/runtime-config.js';
import { StasisError, errnoCode, fileError } from '../errors/index.js';
import { v1Writes, v2Writes, type LimitWrite } from './cgroup-limits.js';
import { deviceFileWrites, deviceProgram, reduceDeviceRules } from './device-program.js';
import { pollUntil } from './poll.js';
import { readText } from './proc.js';

const CGROUP2_SUPER_MAGIC = 0x63677270;
export const cgroupRoot = '/sys/fs/cgroup';

export interface CgroupLayout {
  readonly version: 1 | 2;
  /** v1 and hybrid: controller ("" is hybrid's unified tree) -> its mount. */
  readonly mounts: ReadonlyMap<string, CgroupMount>;
}

export interface CgroupMount {
  readonly mountPoint: string;
  /** The cgroup that the mount shows at its top. */
  readonly root: string;
  /** The cgroup that we are in. */
  readonly own: string;
}

// The order matters: cpuset needs its parents filled in first, and "devices" is where runc counts the processes.
const v1Controllers = [
  'cpuset',
  'devices',
  'memory',
  'cpu',
  'cpuacct',
  'pids',
  'blkio',
  'hugetlb',
  'net_cls',
  'net_prio',
  'perf_event',
  'freezer',
  'rdma',
  'name=systemd',
  '',
];

export function readCgroupLayout(): CgroupLayout {
  const own = new Map<string, string>();
  for (const line of readText('/proc/self/cgroup').trimEnd().split('\n')) {
    const [, controllers, ...path] = line.split(':');
    for (const controller of (controllers ?? '').split(',')) own.set(controller, path.join(':'));
  }
  let version: 1 | 2 = 1;
  try {
    if (statfsSync(cgroupRoot).type === CGROUP2_SUPER_MAGIC) version = 2;
  } catch (error) {
    throw fileError('cannot find the cgroup hierarchies', cgroupRoot, error);
  }
  const mounts = new Map<string, CgroupMount>();
  if (version === 2) {
    mounts.set('', { mountPoint: cgroupRoot, root: '/', own: own.get('') ?? '/' });
    return { version, mounts };
  }
  for (const line of readText('/proc/self/mountinfo').split('\n')) {
    const [before, after] = line.split(' - ');
    if (before === undefined || after === undefined) continue;
    const [, , , root, mountPoint] = before.split(' ');
    const [type, , options] = after.split(' ');
    if (root === undefined || mountPoint === undefined || dirname(mountPoint) !== cgroupRoot) continue;
    if (type === 'cgroup2') mounts.set('', { mountPoint, root, own: own.get('') ?? '/' });
    if (type !== 'cgroup') continue;
    for (const option of (options ?? '').split(',')) {
      if (v1Controllers.includes(option)) mounts.set(option, { mountPoint, root, own: own.get(option) ?? '/' });
    }
  }
  return { version, mounts };
}

/** Controller -> directory, as runc's cgroupfs driver chooses it. */
export function cgroupDirectories(layout: CgroupLayout, place: CgroupPlace): Map<string, string> {
  const inner = place.path !== '' ? place.path : join(place.parent, place.name);
  if (layout.version === 2) {
    const { own } = layout.mounts.get('')!;
    return new Map([['', inner.startsWith('/') ? join(cgroupRoot, inner) : join(cgroupRoot, dirname(own), inner)]]);
  }
  const result = new Map<string, string>();
  for (const controller of v1Controllers) {
    const mount = layout.mounts.get(controller);
    if (mount === undefined) continue;
    result.set(
      controller,
      inner.startsWith('/')
        ? join(mount.mountPoint, inner)
        : join(mount.mountPoint, relative(mount.root, mount.own), inner),
    );
  }
  return result;
}

/** Where a process is in the hierarchy of a controller ("" is the unified tree); undefined: there is none. */
export function cgroupDirectoryOf(layout: CgroupLayout, hostPid: number, controller: string): string | undefined {
  const mount = layout.mounts.get(controller);
  if (mount === undefined) return undefined;
  for (const line of readText(`/proc/${hostPid}/cgroup`).split('\n')) {
    const [, controllers, ...path] = line.split(':');
    if (controllers?.split(',').includes(controller) === true)
      return join(mount.mountPoint, relative(mount.root, path.join(':')));
  }
  return undefined;
}

export interface ContainerCgroup {
  readonly paths: ReadonlyMap<string, string>;
  /** For ExecuteRequest. */
  readonly tasksFiles: readonly string[];
  readonly cgroup2Directory: string;
  /** Directories that were not there before, the deepest last. */
  readonly created: readonly string[];
}

export interface CgroupRequest {
  readonly layout: CgroupLayout;
  readonly place: CgroupPlace;
  readonly spec: RuntimeConfig;
  readonly dialect: RuncDialect;
  /** Keeps the cgroup until the tasks are there. */
  readonly placeholderHostPid: number | undefined;
}

/** Postcondition: on failure nothing that was made is left. */
export function createCgroup(request: CgroupRequest): ContainerCgroup {
  const { layout, spec } = request;
  const paths = cgroupDirectories(layout, request.place);
  const created: string[] = [];
  try {
    refuseOccupied(paths, request.placeholderHostPid);
    const resources =
      request.placeholderHostPid === undefined ? spec.linux?.resources : withRoomForPlaceholder(spec.linux?.resources);
    const policy = reduceDeviceRules(containerDeviceRules(spec, request.dialect === '1.1'));
    if (layout.version === 2) {
      const directory = paths.get('')!;
      makeV2(directory, created);
      apply(directory, v2Writes(resources, readText(join(directory, 'cgroup.controllers')).split(/\s+/)));
      attachDeviceProgram(directory, deviceProgram(policy));
      return { paths, tasksFiles: [], cgroup2Directory: directory, created };
    }
    refuseUnified(resources);
    for (const [controller, directory] of paths) {
      if (controller === 'cpuset') makeCpuset(directory, created, resources);
      else makeDirectories(directory, created);
    }
    for (const [controller, writes] of v1Writes(resources)) {
      const directory = paths.get(controller);
      if (directory === undefined) refuseMissingController(controller, writes);
      else apply(directory, writes);
    }
    const devices = paths.get('devices');
    if (devices !== undefined)
      apply(
        devices,
        deviceFileWrites(policy).map(({ file, text }) => ({ file, text })),
      );
    const hierarchies = [...paths].filter(([controller]) => controller !== '');
    return {
      paths,
      // Controllers that are mounted together have one directory.
      tasksFiles: [...new Set(hierarchies.map(([, directory]) => join(directory, 'tasks')))],
      // Beside v1 there may be an empty v2 hierarchy, which has no such file: there the root is born.
      cgroup2Directory: paths.get('') ?? '',
      created,
    };
  } catch (error) {
    removeCgroups(created);
    throw error;
  }
}

/** A container may be restored that has as many tasks as it is allowed. */
export function withRoomForPlaceholder(resources: SpecResources | undefined): SpecResources | undefined {
  const { pidsLimit = 0 } = resources ?? {};
  return resources === undefined || pidsLimit <= 0 ? resources : { ...resources, pidsLimit: pidsLimit + 1 };
}

/** The placeholder has gone. */
export function limitPids({ paths }: ContainerCgroup, limit: number | undefined): void {
  const directory = paths.get('pids') ?? paths.get('');
  if (directory !== undefined && limit !== undefined && limit > 0)
    apply(directory, [{ file: 'pids.max', text: String(limit) }]);
}

/** What createCgroup is going to make, the deepest last: for whoever must take it back if we are killed meanwhile. */
export function missingCgroups(paths: ReadonlyMap<string, string>): string[] {
  const missing = new Set<string>();
  for (const path of paths.values()) {
    const levels: string[] = [];
    for (let level = path; dirname(level) !== level && !existsSync(level); level = dirname(level))
      levels.unshift(level);
    for (const level of levels) missing.add(level);
  }
  return [...missing].sort((one, other) => one.length - other.length);
}

/** Leaves what somebody else uses meanwhile. */
export function removeCgroups(created: readonly string[]): void {
  for (const directory of [...created].reverse()) {
    try {
      rmdirSync(directory);
    } catch {
      // EBUSY: somebody's process is in it. ENOENT: already gone.
    }
  }
}

/** As removeCgroups, but gives killed tasks the time that they need to leave. */
export async function removeEmptyCgroups(created: readonly string[], timeoutMs: number): Promise<void> {
  const end = performance.now() + timeoutMs;
  for (const directory of [...created].reverse()) {
    await pollUntil(
      () => {
        try {
          rmdirSync(directory);
        } catch (error) {
          return errnoCode(error) !== 'EBUSY';
        }
        return true;
      },
      Math.max(0, end - performance.now()),
    );
  }
}

/** Removes cgroups with everything below them, once the killed tasks have left; false if one of them is still there. */
export async function removeCgroupTrees(directories: Iterable<string>, timeoutMs: number): Promise<boolean> {
  const trees = [...directories];
  // Most have nothing below them, and to look for it costs more than this: node asks for the type of each of 200 files.
  removeCgroups(trees);
  await removeEmptyCgroups(
    trees.filter((directory) => existsSync(directory)).flatMap((directory) => [directory, ...cgroupsBelow(directory)]),
    timeoutMs,
  );
  return trees.every((directory) => !existsSync(directory));
}

/** Parents before their children. */
function cgroupsBelow(directory: string): string[] {
  try {
    return readdirSync(directory, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => join(entry.parentPath, entry.name))
      .sort((one, other) => one.length - other.length);
  } catch (error) {
    if (errnoCode(error) === 'ENOENT') return [];
    throw fileError('cannot read a cgroup', directory, error);
  }
}

function refuseOccupied(paths: ReadonlyMap<string, string>, placeholderHostPid: number | undefined): void {
  const directory = paths.get('devices') ?? paths.get('') ?? [...paths.values()][0];
  if (directory === undefined) return;
  const pids = readText(join(directory, 'cgroup.procs'))
    .split('\n')
    .filter((line) => line !== '' && Number(line) !== placeholderHostPid);
  if (pids.length === 0) return;
  throw new StasisError({
    code: 'CONTAINER_EXISTS',
    message: `cannot use cgroup ${directory}: container's cgroup is not empty: ${pids.length} process(es) found`,
    subject: { path: directory, hostPid: Number(pids[0]) },
    hint: 'end these processes, or give the container another linux.cgroupsPath',
  });
}

function refuseUnified(resources: SpecResources | undefined): void {
  const [name] = Object.keys(resources?.unified ?? {});
  if (name === undefined) return;
  throw new StasisError({
    code: 'BUNDLE_INVALID',
    message: `cannot set linux.resources.unified ${JSON.stringify(name)}: this machine uses cgroup v1`,
    hint: 'express the limit in the other fields of linux.resources',
  });
}

function refuseMissingController(controller: string, writes: readonly LimitWrite[]): void {
  const [first] = writes;
  if (first === undefined) return;
  throw new StasisError({
    code: 'KERNEL_FEATURE_MISSING',
    message: `cannot set ${first.file} to ${first.text}: the ${controller} cgroup controller is not mounted`,
    hint: `mount it below ${cgroupRoot}, or remove the limit from the bundle`,
  });
}

function makeDirectories(directory: string, created: string[]): void {
  // A mount of a hierarchy is there, or the kernel's complaint says best what is missing.
  if (directory === cgroupRoot || directory === '/') return;
  try {
    mkdirSync(directory, 0o755);
    created.push(directory);
    return;
  } catch (error) {
    if (errnoCode(error) === 'EEXIST') return;
    if (errnoCode(error) !== 'ENOENT') throw fileError(`cannot create cgroup ${directory}`, directory, error);
  }
  makeDirectories(dirname(directory), created);
  makeDirectories(directory, created);
}

/** A new cpuset is empty and takes no process: every level inherits from the one above unless the spec says otherwise. */
function makeCpuset(directory: string, created: string[], resources: SpecResources | undefined): void {
  const before = created.length;
  makeDirectories(directory, created);
  const levels = [...new Set([...created.slice(before), directory])];
  for (const level of levels) {
    const given =
      level === directory
        ? { cpus: resources?.cpu.cpus ?? '', mems: resources?.cpu.mems ?? '' }
        : { cpus: '', mems: '' };
    for (const kind of ['cpus', 'mems'] as const) {
      const file = `cpuset.${kind}`;
      if (given[kind] !== '') apply(level, [{ file, text: given[kind] }]);
      else if (readText(join(level, file)).trim() === '')
        apply(level, [{ file, text: readText(join(dirname(level), file)).trim() }]);
    }
  }
}

/** Every level above the container's own passes all controllers on. */
function makeV2(directory: string, created: string[]): void {
  const levels = relative(cgroupRoot, directory).split('/');
  const controllers = readText(join(cgroupRoot, 'cgroup.controllers'))
    .split(/\s+/)
    .filter((name) => name !== '');
  let current = cgroupRoot;
  for (const level of levels) {
    const control = join(current, 'cgroup.subtree_control');
    if (!tryWrite(control, controllers.map((name) => `+${name}`).join(' '))) {
      // One that is missing here must not keep the others away; limits that cannot be set are reported then.
      for (const name of controllers) tryWrite(control, `+${name}`);
    }
    current = join(current, level);
    makeDirectories(current, created);
    if (readText(join(current, 'cgroup.type')).trim() === 'domain invalid')
      tryWrite(join(current, 'cgroup.type'), 'threaded');
  }
}

function tryWrite(path: string, text: string): boolean {
  try {
    writeFileSync(path, text);
    return true;
  } catch {
    return false;
  }
}

function apply(directory: string, writes: readonly LimitWrite[]): void {
  for (const { file, text } of writes) {
    const path = join(directory, file);
    try {
      // Without O_CREAT: cgroupfs answers that with EACCES instead of the more telling ENOENT.
      const fd = openSync(path, 'r+');
      try {
        writeFileSync(fd, text);
      } finally {
        closeSync(fd);
      }
    } catch (error) {
      if (errnoCode(error) === 'EACCES' && tryWrite(path, text)) continue;
      throw fileError(`cannot set ${file} of cgroup ${directory} to ${JSON.stringify(text)}`, path, error);
    }
  }
}

function attachDeviceProgram(directory: string, program: Buffer): void {
  const native = nativeBinding();
  const cgroupFd = openSync(directory, 'r');
  try {
    const programFd = native.loadCgroupDeviceProgram(program);
    try {
      native.attachCgroupDeviceProgram(cgroupFd, programFd);
    } finally {
      closeSync(programFd);
    }
  } catch (error) {
    throw fileError(`cannot set the device rules of cgroup ${directory}`, directory, error);
  } finally {
    closeSync(cgroupFd);
  }
}

/** Where a container's processes are now, for a check after a restore. */
export function readProcs(directory: string): number[] {
  return readFileSync(join(directory, 'cgroup.procs'), 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map(Number);
}
