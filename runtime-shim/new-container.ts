// A container in the making: its state directory (which is also the claim to
// the id), its cgroup, its files for the world outside. The core hears of them
// before they are made, and takes them back unless the tree is released; so do
// we, if we live longer.
import { rmdirSync } from 'node:fs';
import { join } from 'node:path';
import { UndoAction_Kind, type ExecuteRequest, type Parked, type UndoAction } from '../nativecore/index.js';
import type { CgroupPlace } from '../oci-spec/libcontainer-config.js';
import type { SystemdCgroup } from '../oci-spec/systemd-cgroup.js';
import {
  SystemdScope,
  cgroupDirectories,
  createCgroup,
  limitPids,
  missingCgroups,
  type BaseRuntimeVersion,
  type CgroupLayout,
  type ContainerCgroup,
} from './container/index.js';
import { Belongings, kYardName } from './belongings.js';
import { runRestoreHooks } from './hooks.js';
import type { CoreSession } from './core-session.js';
import { noteLazyPages } from './lazy-pages.js';
import type { Bundle } from './bundle.js';
import type { ContainerRestore } from './restore-request.js';
import { prepareStateFiles } from './state-files.js';

export interface NewContainerRequest {
  readonly request: ContainerRestore;
  readonly bundle: Bundle;
  readonly version: BaseRuntimeVersion;
  readonly place: CgroupPlace;
  /** The unit that the place is in, if systemd is to make it. */
  readonly scope: SystemdCgroup | undefined;
  /** Images want one bound over masked directories: it is made if it is not there. */
  readonly emptyDirectory: string | undefined;
  readonly seccompFilter: Uint8Array | undefined;
  readonly layout: CgroupLayout;
  readonly core: CoreSession;
}

export class NewContainer {
  readonly #from: NewContainerRequest;
  readonly #request: ContainerRestore;
  readonly #made: Belongings;
  readonly #cgroup: ContainerCgroup;
  #writeState: ((parked: Parked) => void) | undefined;
  #finished = false;

  private constructor(from: NewContainerRequest, made: Belongings, cgroup: ContainerCgroup) {
    this.#from = from;
    this.#request = from.request;
    this.#made = made;
    this.#cgroup = cgroup;
  }

  /** Empty directory in which the plan assembles the mount tree, in a mount namespace of its own. */
  static yardOf(request: Pick<ContainerRestore, 'root' | 'id'>): string {
    return join(request.root, request.id, kYardName);
  }

  /**
   * Every step is announced to the core before it is taken, and no sooner than
   * it is ours to take: what another restore of the same id has made must not
   * be on our list when we lose the race for it.
   */
  static async create(from: NewContainerRequest): Promise<NewContainer> {
    const { request, place, layout, core } = from;
    const made = new Belongings(request);
    const announce = async (undo: readonly UndoAction[]): Promise<void> => {
      core.send({ prepare: { undo: [...undo] } });
      await core.receive('prepared');
    };
    try {
      await announce(made.undoOfStaging());
      made.makeStaging();
      await announce([...made.undoOfStaging(), ...made.undoOfState()]);
      made.claimId();
      if (from.emptyDirectory !== undefined) made.makeEmptyDirectory(from.emptyDirectory);
      const paths = cgroupDirectories(layout, place);
      if (from.scope !== undefined) made.scope = await startScope(from, from.scope, paths);
      // What systemd has made, it takes away.
      await announce([...made.undoOfState(), ...undoOfCgroups(missingCgroups(paths), paths)]);
      const cgroup = createCgroup({
        layout,
        place,
        spec: from.bundle.spec,
        dialect: '1.1',
        placeholderHostPid: made.scope?.placeholderHostPid,
      });
      made.cgroups = cgroup.created;
      return new NewContainer(from, made, cgroup);
    } catch (error) {
      await core.rollBack();
      await made.takeBack();
      throw error;
    }
  }

  executeRequest(): Pick<ExecuteRequest, 'cgroupTasksFiles' | 'cgroup2Directory' | 'undo' | 'startFifo'> {
    return {
      // The name by which runc and crun know a container that waits for its start.
      startFifo: this.#request.prepare === true ? join(this.#made.stateDirectory, 'exec.fifo') : '',
      cgroupTasksFiles: [...this.#cgroup.tasksFiles],
      cgroup2Directory: this.#cgroup.cgroup2Directory,
      undo: [
        ...this.#made.undoOfPidFile(),
        ...this.#made.undoOfState(),
        ...undoOfCgroups(this.#cgroup.created, this.#cgroup.paths),
      ],
    };
  }

  /** What of publish() can be done while the core works. What is returned writes the state. */
  prepareToPublish(): (parked: Parked) => void {
    const { bundle, version, place, scope, seccompFilter } = this.#from;
    return (this.#writeState ??= prepareStateFiles({
      request: this.#request,
      bundle,
      version,
      stateDirectory: this.#made.stateDirectory,
      cgroupPaths: this.#cgroup.paths,
      cgroupPath: place.path,
      scope: scope?.scope,
      seccompFilter,
    }));
  }

  /** The tree is there and waits: state file, hooks, pid file, in the order in which runc's callers may look for them. */
  async publish(parked: Parked): Promise<void> {
    this.#made.root = parked;
    const { bundle } = this.#from;
    if (this.#made.scope !== undefined) {
      const pidsLimit = bundle.spec.linux?.resources?.pidsLimit;
      await this.#made.scope.handOver(pidsLimit);
      limitPids(this.#cgroup, pidsLimit);
    }
    await runRestoreHooks({
      spec: bundle.spec,
      id: this.#request.id,
      bundle: bundle.directory,
      initHostPid: parked.rootHostPid,
    });
    this.prepareToPublish()(parked);
    noteLazyPages(this.#made.stateDirectory, parked);
    if (this.#request.pidFile !== undefined) this.#made.writePidFile(this.#request.pidFile, parked.rootHostPid);
  }

  /** The tree runs. */
  finish(): void {
    this.#finished = true;
    this.#made.scope?.close();
    try {
      rmdirSync(NewContainer.yardOf(this.#request));
    } catch {
      // It goes with the state directory when the container is deleted.
    }
  }

  /** However the core has ended: a janitor that ran while we were still making things has not seen all of them. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#finished) await this.#made.takeBack();
  }
}

function startScope(
  { request, layout, bundle }: NewContainerRequest,
  scope: SystemdCgroup,
  paths: ReadonlyMap<string, string>,
): Promise<SystemdScope> {
  const controller = layout.version === 2 ? '' : 'name=systemd';
  const place = { name: '', parent: '', path: scope.scopePath, scopePrefix: '' };
  return SystemdScope.start({
    goal: `restore container ${JSON.stringify(request.id)}`,
    cgroup: scope,
    spec: bundle.spec,
    layout,
    directory: cgroupDirectories(layout, place).get(controller) ?? '',
    innerDirectory: paths.get(controller) ?? '',
  });
}

function undoOfCgroups(cgroups: readonly string[], paths: ReadonlyMap<string, string>): UndoAction[] {
  const own = new Set(paths.values());
  // A parent that we made may hold somebody else's cgroup by then: it goes only if it is empty.
  return [...cgroups].reverse().map((path) => ({
    kind: own.has(path) ? UndoAction_Kind.REMOVE_CGROUP : UndoAction_Kind.REMOVE_DIRECTORY,
    path,
    inode: 0n,
  }));
}
