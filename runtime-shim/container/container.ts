// A container that the base runtime made: found through runc's state.json or
// crun's status, checked against the processes that are really there, locked while we work.
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { nativeBinding } from '../../nativecore/index.js';
import { FormatError } from '../../oci-spec/json.js';
import type { ContainerRecord } from '../../oci-spec/container-record.js';
import { parseCrunStatus } from '../../oci-spec/crun-status.js';
import { isContainerId, parseRuncState } from '../../oci-spec/runc-state.js';
import { parseRuntimeConfig } from '../../oci-spec/runtime-config.js';
import type { ContainerStatus } from '../../oci-spec/runtime-state.js';
import { StasisError, errnoCode, fileError } from '../errors/index.js';
import type { RuntimeFamily } from './base-runtime.js';
import { cgroupRoot, readCgroupLayout } from './cgroups.js';
import { freezerOf, type Freezer } from './freezer.js';
import { TRANSITIONS, type Status, type Verb } from './lifecycle.js';
import { isAlive } from './proc.js';

export interface Container {
  readonly id: string;
  readonly stateDirectory: string;
  /** Whose state files these are. */
  readonly madeBy: RuntimeFamily;
  readonly state: ContainerRecord;
  readonly status: ContainerStatus;
  readonly freezer: Freezer | undefined;
  /** Gives the lock back; the kernel does if we die. */
  [Symbol.dispose](): void;
}

export function checkContainerId(id: string): void {
  if (isContainerId(id)) return;
  throw new StasisError({
    code: 'USAGE',
    message: `cannot use ${JSON.stringify(id)} as a container id: invalid container ID format`,
    hint: 'use letters, digits, "_", "+", "-" and "."',
  });
}

/** Throws unless the container is there, its status allows the verb, and nobody else is at work on it. */
export function openContainer(request: { readonly root: string; readonly id: string; readonly verb: Verb }): Container {
  const { root, id, verb } = request;
  checkContainerId(id);
  const stateDirectory = join(root, id);
  const lock = openLocked(stateDirectory, id, verb);
  try {
    const { state, madeBy } = readState(stateDirectory, id);
    const freezer = freezerOf(state.cgroupPaths);
    const status = statusOf(stateDirectory, state, freezer);
    refuseUnlessAllowed(id, status, verb);
    if (status === 'paused' && !isAlive(state.initHostPid, state.initStartTicks))
      refuseUnlessAllowed(id, 'stopped', verb);
    return { id, stateDirectory, madeBy, state, status, freezer, [Symbol.dispose]: () => closeSync(lock) };
  } catch (error) {
    closeSync(lock);
    throw error;
  }
}

export function refuseUnlessAllowed(id: string, status: Status, verb: Verb): void {
  const transition = TRANSITIONS[status][verb];
  if ('next' in transition) return;
  throw new StasisError({
    code: status === 'absent' ? 'CONTAINER_MISSING' : verb === 'restore' ? 'CONTAINER_EXISTS' : 'CONTAINER_STATE',
    message: `cannot ${verb.split(' ')[0]} container ${JSON.stringify(id)}: ${transition.refused}`,
    subject: { container: id },
    hint: transition.hint,
  });
}

/** What `state` would say; undefined: there is no such container, or not yet. */
export function containerStatus(root: string, id: string): ContainerStatus | undefined {
  const stateDirectory = join(root, id);
  try {
    const { state } = readState(stateDirectory, id);
    return statusOf(stateDirectory, state, freezerOf(state.cgroupPaths));
  } catch (error) {
    if (error instanceof StasisError) return undefined;
    throw error;
  }
}

/** runc's rules in runc's order: a frozen cgroup is "paused" even if init is dead. */
function statusOf(stateDirectory: string, state: ContainerRecord, freezer: Freezer | undefined): ContainerStatus {
  if (freezer?.isFrozen() === true) return 'paused';
  if (!isAlive(state.initHostPid, state.initStartTicks)) return 'stopped';
  return existsSync(join(stateDirectory, 'exec.fifo')) ? 'created' : 'running';
}

/** The state directory itself carries the lock: the base runtime deletes whatever lies in it. */
function openLocked(stateDirectory: string, id: string, verb: Verb): number {
  let fd: number;
  try {
    fd = openSync(stateDirectory, 'r');
  } catch (error) {
    if (errnoCode(error) === 'ENOENT' || errnoCode(error) === 'ENOTDIR') refuseUnlessAllowed(id, 'absent', verb);
    throw fileError(`cannot open the state of container ${JSON.stringify(id)}`, stateDirectory, error);
  }
  if (nativeBinding().tryLock(fd)) return fd;
  closeSync(fd);
  throw new StasisError({
    code: 'CONTAINER_STATE',
    message: `cannot ${verb.split(' ')[0]} container ${JSON.stringify(id)}: another checkpoint of it is running`,
    subject: { container: id },
    hint: 'wait until it has ended',
  });
}

function readState(stateDirectory: string, id: string): { state: ContainerRecord; madeBy: RuntimeFamily } {
  const goal = `cannot read the state of container ${JSON.stringify(id)}`;
  const runcFile = join(stateDirectory, 'state.json');
  const crunFile = join(stateDirectory, 'status');
  const madeBy = !existsSync(runcFile) && existsSync(crunFile) ? 'crun' : 'runc';
  try {
    if (madeBy === 'runc') return { madeBy, state: parseRuncState(readFileSync(runcFile, 'utf8')) };
    refuseCrunOnVersion1(goal);
    const spec = parseRuntimeConfig(readFileSync(join(stateDirectory, 'config.json'), 'utf8'));
    return { madeBy, state: parseCrunStatus(readFileSync(crunFile, 'utf8'), id, spec, cgroupRoot) };
  } catch (error) {
    const path = madeBy === 'runc' ? runcFile : crunFile;
    if (error instanceof FormatError) {
      throw new StasisError({
        code: 'STATE_CORRUPT',
        message: `${goal}: ${error.message}`,
        subject: { container: id, path },
        cause: error,
      });
    }
    if (errnoCode(error) === 'ENOENT') {
      throw new StasisError({
        code: 'CONTAINER_MISSING',
        message: `${goal}: container does not exist`,
        subject: { container: id, path },
      });
    }
    throw error instanceof StasisError ? error : fileError(goal, path, error);
  }
}

/** What crun does with cgroups on v1 is not known well enough: a wrong path there is somebody else's processes. */
export function refuseCrunOnVersion1(goal: string): void {
  if (readCgroupLayout().version === 2) return;
  throw new StasisError({
    code: 'KERNEL_FEATURE_MISSING',
    message: `${goal}: crun as the base runtime needs cgroup v2 alone at ${cgroupRoot}, and this machine has v1 hierarchies there`,
    hint: 'use runc as the base runtime',
  });
}
