// Builds a restore plan step by step. Rooms call it; nothing here knows a
// kernel resource. The result is plain data (stasis.plan.Plan).
import {
  Phase,
  type Arg,
  type Blob,
  type Connection,
  type Plan,
  type PlanTask,
  type Release,
  type Step,
} from '../../../nativecore/schema/messages.js';
import { StasisError } from '../../errors/index.js';

export { Phase } from '../../../nativecore/schema/messages.js';
export type PhaseValue = (typeof Phase)[keyof typeof Phase];

/** A value that exists only while the plan runs: a descriptor, a pid, an id. */
export interface SlotRef {
  readonly slot: number;
  readonly name: string;
}
/** Memory that steps point to. */
export interface BlobRef {
  readonly blob: number;
}
export interface BlobOffsetRef {
  readonly blobOffset: { readonly blob: number; readonly offset: number };
}
export type Operand = bigint | number | SlotRef | BlobRef | BlobOffsetRef;

export interface StepOptions {
  /** The result is stored here. */
  readonly out?: SlotRef;
  readonly expected?: bigint | number;
  readonly tolerate?: readonly number[];
  /** The image object that caused the step: "file[9]". */
  readonly from: string;
  /** For the printed plan only. */
  readonly note?: string;
}

export type RepeatOptions = Pick<StepOptions, 'from' | 'note' | 'tolerate'>;

export type Relocation = { readonly offset: number } & (
  { readonly blob: BlobRef } | { readonly slot32: SlotRef } | { readonly slot64: SlotRef }
);

export type TaskKind = 'process' | 'thread' | 'helper' | 'zombie';
const kindValue: Readonly<Record<TaskKind, number>> = { process: 0, thread: 1, helper: 2, zombie: 3 };

/** Of the many steps that have none; frozen, so that nobody adds to it. */
const kNone = Object.freeze([]) as unknown as never[];

export class TaskBuilder {
  readonly index: number;
  readonly kind: TaskKind;
  readonly parent: number;
  readonly from: string;
  setTid: readonly number[];
  cloneFlags = 0n;
  release: Release | undefined;
  stopped = false;
  uffdSlot: SlotRef | undefined;
  readonly fills: { method: number; address: bigint; pageCount: bigint; pageFile: number; fileOffsetBytes: bigint }[] =
    [];
  readonly uffdRanges: { address: bigint; lengthBytes: bigint }[] = [];
  readonly #steps = new Map<PhaseValue, Step[]>();

  constructor(index: number, kind: TaskKind, parent: number, setTid: readonly number[], from: string) {
    this.index = index;
    this.kind = kind;
    this.parent = parent;
    this.setTid = setTid;
    this.from = from;
  }

  /** Appends one system call or built-in operation to a phase of this task. */
  step(phase: PhaseValue, op: string, args: readonly Operand[], options: StepOptions): void {
    const { out, expected, tolerate, from, note = '' } = options;
    const wireArgs: Arg[] = [];
    for (let index = 0; index < args.length; index += 1) wireArgs.push(toArg(args[index]!));
    const step: Step = {
      op,
      args: wireArgs,
      outSlot: out === undefined ? 0 : out.slot,
      hasExpected: expected !== undefined,
      expected: expected === undefined ? 0n : BigInt.asUintN(64, BigInt(expected)),
      toleratedErrnos: tolerate === undefined ? kNone : [...tolerate],
      from,
      note,
      moreArgs: kNone,
    };
    const steps = this.#steps.get(phase);
    if (steps === undefined) this.#steps.set(phase, [step]);
    else steps.push(step);
  }

  /**
   * Appends steps of one form: `numbers` has the arguments of each, one after the other, `width` for a step. Where there
   * are thousands of them, messages of their own would cost more than the system calls.
   */
  steps(phase: PhaseValue, op: string, width: number, numbers: readonly bigint[], options: RepeatOptions): void {
    if (numbers.length === 0) return;
    this.step(phase, op, numbers.slice(0, width), options);
    const last = this.#steps.get(phase)?.at(-1);
    if (last !== undefined) last.moreArgs = numbers.slice(width);
  }

  message(): PlanTask {
    const phases = [...this.#steps.entries()].sort(([a], [b]) => a - b);
    return {
      kind: kindValue[this.kind],
      parent: this.parent,
      setTid: [...this.setTid],
      cloneFlags: this.cloneFlags,
      phases: phases.map(([phase, steps]) => ({ phase, steps })),
      release: this.release,
      fills: this.fills,
      uffdRanges: this.uffdRanges,
      uffdSlot: this.uffdSlot?.slot ?? 0,
      from: this.from,
      stopped: this.stopped,
    };
  }
}

export class PlanBuilder {
  readonly tasks: TaskBuilder[] = [];
  readonly connections: Connection[] = [];
  /** Where the connections' network is before the tree is; 0: nowhere. */
  networkDescriptor = 0;
  hole: { address: bigint; lengthBytes: bigint } = { address: 0n, lengthBytes: 0n };
  #slots = 0;
  readonly #blobs: Blob[] = [];
  readonly #blobsByText = new Map<string, BlobRef>();
  readonly #externals = new Map<string, { slot: SlotRef; descriptor: number }>();
  readonly #pageFiles: string[] = [];

  addTask(kind: TaskKind, parent: number, setTid: readonly number[], from: string): TaskBuilder {
    const task = new TaskBuilder(this.tasks.length, kind, parent, setTid, from);
    this.tasks.push(task);
    return task;
  }

  slot(name: string): SlotRef {
    this.#slots += 1;
    return { slot: this.#slots, name };
  }

  /** Bytes for steps to point to; `lengthBytes` larger than the data leaves zeroed room for results. */
  blob(data: Uint8Array, relocations: readonly Relocation[] = [], lengthBytes: number = data.length): BlobRef {
    const wire = relocations.map((relocation) => {
      if ('blob' in relocation) return { offset: relocation.offset, blob: relocation.blob.blob };
      if ('slot32' in relocation) return { offset: relocation.offset, slot32: relocation.slot32.slot };
      return { offset: relocation.offset, slot64: relocation.slot64.slot };
    });
    this.#blobs.push({ data, relocations: wire, lengthBytes: BigInt(lengthBytes) });
    return { blob: this.#blobs.length - 1 };
  }

  /** A NUL-terminated string; equal strings share a blob. */
  text(value: string | Uint8Array): BlobRef {
    // In one form per kind: what is no string need not be UTF-8.
    const key = typeof value === 'string' ? value : `\0${Buffer.from(value).toString('latin1')}`;
    if (key.includes('\0', typeof value === 'string' ? 0 : 1)) {
      throw new StasisError({
        code: 'IMAGE_CORRUPT',
        message: 'cannot read the images: a path or name in them contains a NUL byte',
        hint: 'use another copy of the checkpoint',
      });
    }
    let ref = this.#blobsByText.get(key);
    if (ref === undefined) {
      ref = this.blob(typeof value === 'string' ? Buffer.from(`${value}\0`) : Buffer.concat([value, kEnd]));
      this.#blobsByText.set(key, ref);
    }
    return ref;
  }

  at(blob: BlobRef, offset: number): BlobOffsetRef {
    return { blobOffset: { blob: blob.blob, offset } };
  }

  /** An inherited descriptor, preset in a slot; one slot per name. */
  external(name: string, descriptor: number): SlotRef {
    let known = this.#externals.get(name);
    if (known === undefined) {
      known = { slot: this.slot(name), descriptor };
      this.#externals.set(name, known);
    }
    return known.slot;
  }

  pageFile(name: string): number {
    const at = this.#pageFiles.indexOf(name);
    return at >= 0 ? at : this.#pageFiles.push(name) - 1;
  }

  message(imageDigest: string): Plan {
    return {
      version: 1,
      hole: this.hole,
      tasks: this.tasks.map((task) => task.message()),
      blobs: this.#blobs,
      slotCount: this.#slots,
      externals: [...this.#externals].map(([name, { slot, descriptor }]) => ({ name, slot: slot.slot, descriptor })),
      pageFiles: this.#pageFiles,
      imageDigest,
      connections: this.connections,
      networkDescriptor: this.networkDescriptor,
    };
  }
}

function toArg(operand: Operand): Arg {
  if (typeof operand === 'number' && operand >= 0 && operand < kSmall.length) return kSmall[operand]!;
  if (typeof operand === 'bigint' || typeof operand === 'number')
    return { immediate: BigInt.asUintN(64, BigInt(operand)) };
  // References are arguments as they are: what a slot is called goes nowhere.
  return operand;
}

/** Most numbers are flags, lengths and descriptors. */
const kSmall: readonly Arg[] = Array.from({ length: 256 }, (_, value) => Object.freeze({ immediate: BigInt(value) }));
const kEnd = new Uint8Array(1);
