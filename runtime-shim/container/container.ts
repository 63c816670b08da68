// A container that the base runtime made: found through runc's state.json,
// checked against the processes that are really there, locked while we work.
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { nativeBinding } from '../../nativecore/index.js';
import { FormatError } from '../../oci-spec/json.js';
import { isContainerId, parseRuncState, type RuncState } from '../../oci-spec/runc-state.js';
import type { ContainerStatus } from '../../oci-spec/runtime-state.js';
import { StasisError, errnoCode, fileError } from '../errors/index.js';
import { freezerOf, type Freezer } from './freezer.js';
import { TRANSITIONS, type Status, type Verb } from './lifecycle.js';
import { isAlive } from './proc.js';

export interface Container {
  readonly id: string;
  readonly stateDirectory: string;
  readonly state: RuncState;
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
    const state = readState(stateDirectory, id);
    const freezer = freezerOf(state.cgroupPaths);
    const status = statusOf(stateDirectory, state, freezer);
    refuseUnlessAllowed(id, status, verb);
    if (status === 'paused' && !isAlive(state.initHostPid, state.initStartTicks))
      refuseUnlessAllowed(id, 'stopped', verb);
    return { id, stateDirectory, state, status, freezer, [Symbol.dispose]: () => closeSync(lock) };
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

/** runc's rules in runc's order: a frozen cgroup is "paused" even if init is dead. */
function statusOf(stateDirectory: string, state: RuncState, freezer: Freezer | undefined): ContainerStatus {
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

function readState(stateDirectory: string, id: string): RuncState {
  const path = join(stateDirectory, 'state.json');
  try {
    return parseRuncState(readFileSync(path, 'utf8'));
  } catch (error) {
    if (error instanceof FormatError) {
      throw new StasisError({
        code: 'STATE_CORRUPT',
        message: `cannot read the state of container ${JSON.stringify(id)}: ${error.message}`,
        subject: { container: id, path },
        cause: error,
      });
    }
    if (errnoCode(error) === 'ENOENT') {
      const crun = existsSync(join(stateDirectory, 'status'));
      throw new StasisError({
        code: crun ? 'STATE_CORRUPT' : 'CONTAINER_MISSING',
        message: crun
          ? `cannot read the state of container ${JSON.stringify(id)}: it was made by crun, whose state files are not read yet`
          : `cannot read the state of container ${JSON.stringify(id)}: container does not exist`,
        subject: { container: id, path },
        ...(crun ? { hint: 'make the container with runc as the base runtime' } : {}),
      });
    }
    throw fileError(`cannot read the state of container ${JSON.stringify(id)}`, path, error);
  }
}
