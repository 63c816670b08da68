// A room: one kernel resource, both directions. encode.ts and compile.ts walk
// the lists in resources/index.ts; the order of the lists is the order of
// work, and inside a plan phase the order of steps.
import type { OpenFile } from '../../nativecore/schema/messages.js';
import type { file_entry } from '../../oci-spec/images/messages.js';
import type { CompileContext } from './compile-context.js';
import type { EncodeContext } from './encode-context.js';
import type { SlotRef, TaskBuilder } from './plan/builder.js';

export interface Room {
  readonly kind: string;
  /** Raw capture to image entries; objects to what it cannot carry (ctx.object) and goes on. */
  encode?(ctx: EncodeContext): void;
  /** Image entries to plan steps. */
  compile?(ctx: CompileContext): void;
}

/** A room for one kind of open file. */
export interface FileRoom {
  readonly kind: string;
  /** Is this open file of my kind? Asked in list order; the first yes owns it. */
  claims(file: OpenFile, ctx: EncodeContext): boolean;
  /** The files.img entry for it, or undefined after objecting. */
  encode(file: OpenFile, fileId: number, ctx: EncodeContext): file_entry | undefined;
  /** fd_types value of my entries. */
  readonly fdType: number;
  /** Emits the steps that open the file in the root task, phase FILES; the result is its descriptor, at a high number. */
  compile(entry: file_entry, ctx: CompileContext): SlotRef;
  /** May the only descriptor of the file be opened where it belongs, by openInPlace instead of compile? */
  opensInPlace?(entry: file_entry, ctx: CompileContext): boolean;
  /** Emits the steps that open the file in the task that has it, phase DESCRIPTORS. */
  openInPlace?(entry: file_entry, place: DescriptorPlace, ctx: CompileContext): void;
  /** Steps in one task after its descriptors are in place (epoll registrations, locks): phase DESCRIPTORS. */
  compileInTask?(
    entry: file_entry,
    use: { readonly taskIndex: number; readonly fd: number },
    ctx: CompileContext,
  ): void;
}

/** A number in a descriptor table that is being filled in order. */
export interface DescriptorPlace {
  readonly task: TaskBuilder;
  readonly fd: number;
  /** Every lower number is taken: what is opened now gets this one. */
  readonly isLowest: boolean;
  readonly closeOnExec: boolean;
}
