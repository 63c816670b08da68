// A container in the making: its state directory (which is also the claim to
// the id), its cgroup, its files for the world outside. The core hears of them
// before they are made, and takes them back unless the tree is released.
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  rmdirSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { UndoAction_Kind, type ExecuteRequest, type Parked, type UndoAction } from '../nativecore/index.js';
import { cgroupPlace, toLibcontainerConfig } from '../oci-spec/libcontainer-config.js';
import { formatRuncState } from '../oci-spec/runc-state.js';
import {
  baseRuntimeVersion,
  cgroupDirectories,
  createCgroup,
  missingCgroups,
  ownDescriptorLinks,
  refuseUnlessAllowed,
  type BaseRuntime,
  type BaseRuntimeVersion,
  type CgroupLayout,
  type ContainerCgroup,
} from './container/index.js';
import { errnoCode, fileError } from './errors/index.js';
import { makeDirectory } from './directories.js';
import { runRestoreHooks } from './hooks.js';
import type { CoreSession } from './core-session.js';
import type { Bundle } from './bundle.js';
import type { ContainerRestore } from './restore-request.js';

export interface NewContainerRequest {
  readonly request: ContainerRestore;
  readonly bundle: Bundle;
  readonly base: BaseRuntime;
  readonly layout: CgroupLayout;
  readonly core: CoreSession;
}

export class NewContainer {
  readonly #request: ContainerRestore;
  readonly #bundle: Bundle;
  readonly #stateDirectory: string;
  readonly #cgroup: ContainerCgroup;
  /** Asked for at once, needed when the tree is parked. */
  readonly #version: Promise<BaseRuntimeVersion>;

  private constructor(from: NewContainerRequest, stateDirectory: string, cgroup: ContainerCgroup) {
    this.#request = from.request;
    this.#bundle = from.bundle;
    this.#stateDirectory = stateDirectory;
    this.#cgroup = cgroup;
    this.#version = baseRuntimeVersion(from.base);
    this.#version.catch(() => undefined);
  }

  /** Empty directory in which the plan assembles the mount tree, in a mount namespace of its own. */
  static yardOf(request: Pick<ContainerRestore, 'root' | 'id'>): string {
    return join(request.root, request.id, 'criu-root');
  }

  static async create(from: NewContainerRequest): Promise<NewContainer> {
    const { request, layout, core } = from;
    const { root, id } = request;
    const stateDirectory = join(root, id);
    const place = cgroupPlace(from.bundle.spec, id, false);
    const paths = cgroupDirectories(layout, place);
    const undo = undoActions(request, missingCgroups(paths), paths);
    try {
      makeDirectory(root, 0o700);
      // Fails if the id is taken, even by somebody who is restoring it at the same time.
      mkdirSync(stateDirectory, { mode: 0o711 });
    } catch (error) {
      if (errnoCode(error) === 'EEXIST') refuseUnlessAllowed(id, 'stopped', 'restore');
      throw fileError(`cannot create the state directory of container ${JSON.stringify(id)}`, stateDirectory, error);
    }
    try {
      // At once: being killed between these two calls leaves an empty state directory.
      core.send({ prepare: { undo } });
      await core.receive('prepared');
    } catch (error) {
      rmSync(stateDirectory, { recursive: true, force: true });
      throw error;
    }
    try {
      mkdirSync(NewContainer.yardOf(request), { mode: 0o755 });
      return new NewContainer(
        from,
        stateDirectory,
        createCgroup({ layout, place, spec: from.bundle.spec, dialect: '1.1' }),
      );
    } catch (error) {
      await core.rollBack();
      throw error;
    }
  }

  executeRequest(): Pick<ExecuteRequest, 'cgroupProcsFiles' | 'cgroup2Directory' | 'undo'> {
    return {
      cgroupProcsFiles: [...this.#cgroup.procsFiles],
      cgroup2Directory: this.#cgroup.cgroup2Directory,
      undo: undoActions(this.#request, this.#cgroup.created, this.#cgroup.paths),
    };
  }

  /** The tree is there and waits: state file, hooks, pid file, in the order in which runc's callers may look for them. */
  async publish(parked: Parked): Promise<void> {
    const version = await this.#version;
    const { spec } = this.#bundle;
    await runRestoreHooks({
      spec,
      id: this.#request.id,
      bundle: this.#bundle.directory,
      initHostPid: parked.rootHostPid,
    });
    const text = formatRuncState({
      id: this.#request.id,
      initHostPid: parked.rootHostPid,
      initStartTicks: parked.rootStartTicks,
      created: new Date(),
      config: toLibcontainerConfig({
        spec,
        id: this.#request.id,
        bundle: this.#bundle.directory,
        systemdCgroup: false,
        noPivotRoot: this.#request.noPivot,
        noNewKeyring: this.#request.noNewKeyring,
        dialect: version.dialect,
        specVersion: version.specVersion,
      }),
      cgroupPaths: this.#cgroup.paths,
      externalDescriptors: ownDescriptorLinks(),
      kernelNamespaces: new Set(readdirSync('/proc/self/ns')),
    });
    const path = join(this.#stateDirectory, 'state.json');
    try {
      writeFileSync(`${path}.new`, text, { mode: 0o600 });
      renameSync(`${path}.new`, path);
    } catch (error) {
      throw fileError(`cannot write the state of container ${JSON.stringify(this.#request.id)}`, path, error);
    }
    if (this.#request.pidFile !== undefined) writePidFile(this.#request.pidFile, parked.rootHostPid);
  }

  /** The tree runs. */
  finish(): void {
    try {
      rmdirSync(NewContainer.yardOf(this.#request));
    } catch {
      // It goes with the state directory when the container is deleted.
    }
  }
}

function undoActions(
  request: ContainerRestore,
  cgroups: readonly string[],
  paths: ReadonlyMap<string, string>,
): UndoAction[] {
  const { pidFile } = request;
  const own = new Set(paths.values());
  return [
    ...(pidFile === undefined ? [] : [{ kind: UndoAction_Kind.REMOVE_FILE, path: pidFile }]),
    { kind: UndoAction_Kind.REMOVE_DIRECTORY, path: NewContainer.yardOf(request) },
    { kind: UndoAction_Kind.REMOVE_TREE, path: join(request.root, request.id) },
    // A parent that we made may hold somebody else's cgroup by then: it goes only if it is empty.
    ...[...cgroups].reverse().map((path) => ({
      kind: own.has(path) ? UndoAction_Kind.REMOVE_CGROUP : UndoAction_Kind.REMOVE_DIRECTORY,
      path,
    })),
  ];
}

/** As runc writes it: a hidden file first, then renamed; digits, no newline. */
function writePidFile(path: string, hostPid: number): void {
  const hidden = join(dirname(path), `.${basename(path)}`);
  try {
    const fd = openSync(hidden, 'wx', 0o666);
    try {
      writeSync(fd, String(hostPid));
    } finally {
      closeSync(fd);
    }
    renameSync(hidden, path);
  } catch (error) {
    throw fileError(`cannot write the pid file ${path}`, path, error);
  }
}
