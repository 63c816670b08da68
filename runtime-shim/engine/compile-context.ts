// What the rooms share while images become a restore plan.
import type {
  core_entry,
  fdinfo_entry,
  file_entry,
  fs_entry,
  inventory_entry,
  mm_entry,
  pstree_entry,
  task_kobj_ids_entry,
} from '../../oci-spec/images/messages.js';
import { StasisError, type Degradation, type ErrorCode, type Subject } from '../errors/index.js';
import type { ImageSetReader } from './image-set.js';
import type { CompileOptions } from './options.js';
import { PlanBuilder, type SlotRef, type TaskBuilder } from './plan/builder.js';

/** The decoded images: what decode.ts returns. Threads' cores are keyed by tid. */
export interface ImageModel {
  readonly set: ImageSetReader;
  readonly inventory: inventory_entry;
  readonly tasks: readonly ImageTask[];
  readonly files: ReadonlyMap<number, file_entry>;
  readonly digest: string;
}

export interface ImageTask {
  readonly pid: number;
  readonly entry: pstree_entry;
  readonly core: core_entry;
  readonly zombie: boolean;
  /** Absent for zombies. */
  readonly ids: task_kobj_ids_entry | undefined;
  readonly mm: mm_entry | undefined;
  readonly fs: fs_entry | undefined;
  readonly fds: readonly fdinfo_entry[];
  /** tid -> core; the leader included. */
  readonly threads: ReadonlyMap<number, core_entry>;
}

/** A process of the plan, next to the images it comes from. */
export interface PlannedTask {
  readonly image: ImageTask;
  readonly builder: TaskBuilder;
  /** tid -> its plan task, the leader excluded. */
  readonly threads: Map<number, TaskBuilder>;
}

export class CompileContext {
  readonly plan = new PlanBuilder();
  readonly objections: StasisError[] = [];
  readonly degradations: Degradation[] = [];
  /** By pid, in plan order (parents first); filled by the task room, which is first in the list. Zombies included. */
  readonly tasks = new Map<number, PlannedTask>();
  /** file id -> descriptor (high number) opened in the root task; filled by the file rooms. */
  readonly fileSlots = new Map<number, SlotRef>();
  /** Ids of files that one descriptor refers to, and that are opened in its place. */
  readonly filesInPlace = new Set<number>();
  /** Lowest number for descriptors that are only held until every task has its own: above every target's. */
  highFdBase = 0;
  /** So many numbers after highFdBase stay open until the root task closes them in CREDENTIALS: mappings are made from them, and userfaultfds. */
  keptDescriptors = 0;
  /** So many after those stay open until phase THREADS: mappings are made from them. */
  keptForMappings = 0;

  constructor(
    readonly images: ImageModel,
    readonly options: CompileOptions,
  ) {}

  get root(): PlannedTask {
    for (const task of this.tasks.values()) return task;
    throw new StasisError({
      code: 'IMAGE_CORRUPT',
      message: 'cannot restore: the images have no tasks',
      subject: { image: 'pstree.img' },
    });
  }

  object(code: ErrorCode, message: string, subject: Subject, hint?: string): void {
    this.objections.push(
      new StasisError({
        code,
        message: `cannot restore: ${message}`,
        subject,
        ...(hint === undefined ? {} : { hint }),
      }),
    );
  }

  degrade(code: string, message: string, subject: Subject): void {
    this.degradations.push({ code, message, subject });
  }
}
