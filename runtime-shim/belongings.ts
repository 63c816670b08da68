// What a restore makes outside its tree, and how it goes again. The directory
// that becomes the state directory is made under a name of its own and renamed
// once it can be told from others by its inode: whoever is killed at any
// instant, the core or its janitor know what to remove, and what not to.
import { randomBytes } from 'node:crypto';
import { closeSync, lstatSync, mkdirSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { UndoAction_Kind, nativeBinding, type Parked, type UndoAction } from '../nativecore/index.js';
import { isAlive, pollUntil, refuseUnlessAllowed, removeEmptyCgroups, type SystemdScope } from './container/index.js';
import { makeDirectory } from './directories.js';
import { fileError } from './errors/index.js';
import type { ContainerRestore } from './restore-request.js';

/** In the state directory: where the plan assembles the mount tree. */
export const kYardName = 'criu-root';

/** SIGKILLed tasks leave when the kernel has freed their memory. */
const kEndTimeoutMs = 3000;

export class Belongings {
  readonly stateDirectory: string;
  /** Deepest last. */
  cgroups: readonly string[] = [];
  scope: SystemdScope | undefined;
  /** The first process, as soon as there is one that may have been let go. */
  root: Pick<Parked, 'rootHostPid' | 'rootStartTicks'> | undefined;
  readonly #request: ContainerRestore;
  readonly #staging: string;
  #stateInode = 0n;
  #yardInode = 0n;
  #pidFileInode = 0n;

  constructor(request: ContainerRestore) {
    this.#request = request;
    this.stateDirectory = join(request.root, request.id);
    // Of its own even among processes of different pid namespaces, and among several restores of one process.
    this.#staging = join(request.root, `.stasis-restore-${process.pid}-${randomBytes(4).toString('hex')}`);
  }

  undoOfStaging(): UndoAction[] {
    return [
      { kind: UndoAction_Kind.REMOVE_DIRECTORY, path: join(this.#staging, kYardName), inode: 0n },
      { kind: UndoAction_Kind.REMOVE_TREE, path: this.#staging, inode: 0n },
    ];
  }

  undoOfState(): UndoAction[] {
    return [
      {
        kind: UndoAction_Kind.REMOVE_DIRECTORY,
        path: join(this.stateDirectory, kYardName),
        inode: this.#yardInode,
      },
      { kind: UndoAction_Kind.REMOVE_TREE, path: this.stateDirectory, inode: this.#stateInode },
    ];
  }

  undoOfPidFile(): UndoAction[] {
    const { pidFile } = this.#request;
    if (pidFile === undefined) return [];
    return [hiddenName(pidFile), pidFile].map((path) => ({ kind: UndoAction_Kind.REMOVE_FILE, path, inode: 0n }));
  }

  makeStaging(): void {
    const yard = join(this.#staging, kYardName);
    try {
      makeDirectory(this.#request.root, 0o700);
      mkdirSync(this.#staging, { mode: 0o711 });
      mkdirSync(yard, { mode: 0o755 });
      this.#stateInode = lstatSync(this.#staging, { bigint: true }).ino;
      this.#yardInode = lstatSync(yard, { bigint: true }).ino;
    } catch (error) {
      throw this.#cannotCreate(this.#staging, error);
    }
  }

  /** Refused if the id is taken, even by somebody who is restoring it at the same time. */
  claimId(): void {
    let claimed: boolean;
    try {
      claimed = nativeBinding().renameWithoutReplacing(this.#staging, this.stateDirectory);
    } catch (error) {
      throw this.#cannotCreate(this.stateDirectory, error);
    }
    if (!claimed) refuseUnlessAllowed(this.#request.id, 'stopped', 'restore');
  }

  /** In the state directory, or beside it, where it stays for others; crun makes it with these permissions, too. */
  makeEmptyDirectory(path: string): void {
    try {
      makeDirectory(path, 0o555);
    } catch (error) {
      throw this.#cannotCreate(path, error);
    }
  }

  /** As runc writes it: a hidden file first, then renamed; digits, no newline. */
  writePidFile(path: string, hostPid: number): void {
    const hidden = hiddenName(path);
    try {
      const fd = openSync(hidden, 'wx', 0o666);
      try {
        this.#pidFileInode = inodeOf(hidden) ?? 0n;
        writeSync(fd, String(hostPid));
      } finally {
        closeSync(fd);
      }
      renameSync(hidden, path);
    } catch (error) {
      throw fileError(`cannot write the pid file ${path}`, path, error);
    }
  }

  /**
   * Removes what is still there. The core's janitor may do the same at the same
   * time. Nothing goes if the tree lives: it has been released, although the
   * core was killed before it could say so.
   */
  async takeBack(): Promise<void> {
    const { root } = this;
    if (root !== undefined) {
      const ended = await pollUntil(() => !isAlive(root.rootHostPid, root.rootStartTicks), kEndTimeoutMs);
      if (!ended) return this.scope?.close();
    }
    const { pidFile } = this.#request;
    if (pidFile !== undefined && this.#pidFileInode !== 0n) {
      for (const path of [hiddenName(pidFile), pidFile]) {
        if (inodeOf(path) === this.#pidFileInode) removeTree(path);
      }
    }
    for (const path of [this.#staging, this.stateDirectory]) {
      if (path === this.#staging || (this.#stateInode !== 0n && inodeOf(path) === this.#stateInode)) removeTree(path);
    }
    await this.scope?.end();
    await removeEmptyCgroups(this.cgroups, kEndTimeoutMs);
  }

  #cannotCreate(path: string, error: unknown): Error {
    return fileError(`cannot create the state directory of container ${JSON.stringify(this.#request.id)}`, path, error);
  }
}

function hiddenName(path: string): string {
  return join(dirname(path), `.${basename(path)}`);
}

function inodeOf(path: string): bigint | undefined {
  try {
    return lstatSync(path, { bigint: true }).ino;
  } catch {
    return undefined;
  }
}

function removeTree(path: string): void {
  try {
    rmSync(path, { recursive: true, force: true });
  } catch {
    // The janitor may be emptying it as well; the error that brought us here says more than this one.
  }
}
