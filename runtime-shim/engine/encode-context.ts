// What the rooms share while a raw capture becomes images: the tasks as the
// target's own pid namespace names them, the image files so far, ids, and the
// objections collected in one pass.
import type { Capture, OpenFile, Task } from '../../nativecore/schema/messages.js';
import type {
  core_entry,
  file_entry,
  inventory_entry,
  mm_entry,
  task_core_entry,
  thread_core_entry,
} from '../../oci-spec/images/messages.js';
import { StasisError, type Degradation, type ErrorCode, type Subject } from '../errors/index.js';
import { ImageSetWriter } from './image-set.js';
import type { EncodeOptions } from './options.js';
import { ProcStat, ProcStatus } from './proc-text.js';

/** A task of the capture with what every room asks of it. */
export interface CapturedTask {
  readonly raw: Task;
  /** Index in Capture.tasks. */
  readonly index: number;
  /** Pid in the innermost pid namespace: what images call pid. */
  readonly nsPid: number;
  readonly parentNsPid: number;
  readonly stat: ProcStat;
  readonly status: ProcStatus;
  /** Number in the names of its pagemap and pages images. */
  readonly pagesId: number;
}

/** A thread's core image while the rooms fill it in. */
export interface CoreDraft extends core_entry {
  thread_core: thread_core_entry;
}

/** What the rooms write about one live task before encode.ts puts it into images. */
export interface TaskDraft {
  /** core-<pid>: the leader's core with the process part. */
  readonly core: CoreDraft & { tc: task_core_entry };
  /** Tid in the innermost namespace -> its core; the leader's is `core`. */
  readonly threads: ReadonlyMap<number, CoreDraft>;
  mm: mm_entry | undefined;
}

export class EncodeContext {
  readonly images = new ImageSetWriter();
  readonly objections: StasisError[] = [];
  readonly degradations: Degradation[] = [];
  readonly tasks: readonly CapturedTask[];
  readonly #byHostPid = new Map<number, CapturedTask>();
  readonly #fileEntries = new Map<number, file_entry>();
  readonly #openFileIds = new Map<number, number>();
  readonly #fileIdsByKey = new Map<string, number>();
  #nextFileId = 1;
  readonly #namespaceIds = new Map<string, number>();
  readonly #drafts = new Map<number, TaskDraft>();
  /** Parts of the inventory that rooms know (root_cg_set). */
  readonly inventory: Partial<inventory_entry> = {};

  constructor(
    readonly capture: Capture,
    readonly options: EncodeOptions,
  ) {
    // ids 1.. belong to the namespaces of the engine itself, as the format has it
    for (const own of capture.host?.ownNamespaces ?? []) this.namespaceId(own.kind, own.inode);
    let pagesId = 0;
    const tasks = capture.tasks.map((raw, index): CapturedTask => {
      const status = new ProcStatus(raw.status);
      const nsPid = raw.nsPids.at(-1) ?? raw.hostPid;
      if (!raw.zombie) pagesId += 1;
      return {
        raw,
        index,
        nsPid,
        parentNsPid: 0,
        stat: new ProcStat(raw.stat),
        status,
        pagesId: raw.zombie ? 0 : pagesId,
      };
    });
    for (const task of tasks) this.#byHostPid.set(task.raw.hostPid, task);
    this.tasks = tasks.map((task) => {
      const parent = this.#byHostPid.get(task.raw.parentHostPid);
      return parent === undefined ? task : { ...task, parentNsPid: parent.nsPid };
    });
    for (const task of this.tasks) this.#byHostPid.set(task.raw.hostPid, task);
  }

  get root(): CapturedTask {
    const root = this.tasks[0];
    if (root === undefined)
      throw new StasisError({ code: 'BUG', message: 'cannot encode the capture: it has no tasks' });
    return root;
  }

  /** Live tasks and zombies have one; zombies' has no thread part that means anything. */
  draft(task: CapturedTask): TaskDraft {
    let draft = this.#drafts.get(task.raw.hostPid);
    if (draft === undefined) {
      const core = {
        ...emptyCore(),
        tc: {
          task_state: 1,
          exit_code: 0,
          personality: 0,
          flags: 0,
          blk_sigset: 0n,
          comm: task.stat.comm,
          sigactions: [],
        },
      };
      const threads = new Map<number, CoreDraft>([[task.nsPid, core]]);
      for (const thread of task.raw.threads) {
        const tid = thread.nsTids.at(-1) ?? thread.hostTid;
        if (!threads.has(tid)) threads.set(tid, emptyCore());
      }
      draft = { core, threads, mm: undefined };
      this.#drafts.set(task.raw.hostPid, draft);
    }
    return draft;
  }

  /** Number of the task's descriptor table, as in ids-<pid> and fdinfo-<id>; 1 is the engine's own. */
  filesId(task: CapturedTask): number {
    const owner = this.#byHostPid.get(task.raw.fdTableHostPid) ?? task;
    return owner.index + 2;
  }

  taskOfHostPid(hostPid: number): CapturedTask | undefined {
    return this.#byHostPid.get(hostPid);
  }

  /** Collects a blocker and goes on, so that all of them are reported in one pass. */
  object(code: ErrorCode, message: string, subject: Subject, hint?: string): void {
    this.objections.push(
      new StasisError({
        code,
        message: `cannot checkpoint: ${message}`,
        subject,
        ...(hint === undefined ? {} : { hint }),
      }),
    );
  }

  degrade(code: string, message: string, subject: Subject): void {
    this.degradations.push({ code, message, subject });
  }

  /** The number that images use for a namespace; the engine's own come first. */
  namespaceId(kind: string, inode: bigint): number {
    const key = `${kind.replace('_for_children', '')}:${inode}`;
    let id = this.#namespaceIds.get(key);
    if (id === undefined) {
      id = this.#namespaceIds.size + 1;
      this.#namespaceIds.set(key, id);
    }
    return id;
  }

  /** Is this the engine's own namespace (then there is no image for it)? */
  isOwnNamespace(kind: string, inode: bigint): boolean {
    return (this.capture.host?.ownNamespaces ?? []).some((own) => own.kind === kind && own.inode === inode);
  }

  newFileId(): number {
    return this.#nextFileId++;
  }

  /** One id per key ("device:inode:flags:path"), for exe, cwd, root and mapped files. */
  fileIdOfKey(key: string): { readonly id: number; readonly isNew: boolean } {
    const known = this.#fileIdsByKey.get(key);
    if (known !== undefined) return { id: known, isNew: false };
    const id = this.newFileId();
    this.#fileIdsByKey.set(key, id);
    return { id, isNew: true };
  }

  addFile(entry: file_entry): void {
    this.#fileEntries.set(entry.id, entry);
    this.images.add('files', undefined, entry);
  }

  fileEntry(id: number): file_entry | undefined {
    return this.#fileEntries.get(id);
  }

  /** The file id of an open file (index in Capture.open_files), once its room has encoded it. */
  openFileId(index: number): number | undefined {
    return this.#openFileIds.get(index);
  }

  setOpenFileId(index: number, id: number): void {
    this.#openFileIds.set(index, id);
  }

  subjectOfTask(task: CapturedTask): Subject {
    return { hostPid: task.raw.hostPid, nsPid: task.nsPid, comm: task.stat.comm };
  }

  subjectOfFile(file: OpenFile): Subject {
    const task = this.taskOfHostPid(file.hostPid);
    return {
      ...(task === undefined ? { hostPid: file.hostPid } : this.subjectOfTask(task)),
      targetFd: file.fd,
      path: Buffer.from(file.link).toString('utf8'),
    };
  }
}

function emptyCore(): CoreDraft {
  return { mtype: kMachineX86, thread_core: { futex_rla: 0n, futex_rla_len: 0 } };
}

/** core_entry_march X86_64 */
const kMachineX86 = 1;
