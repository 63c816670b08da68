// Pipes without a name: both ends, capacity, flags and unread bytes. A pipe
// whose other side stays outside is inherited on restore by its name.
import { fd_types, type file_entry, type pipe_data_entry } from '../../../oci-spec/images/messages.js';
import type { ImageEntry } from '../../../oci-spec/images/image-file.js';
import type { CompileContext } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import { Phase, type SlotRef } from '../plan/builder.js';
import type { FileRoom } from '../room.js';
import {
  corrupt,
  descriptorPhrase,
  encodeOwner,
  heldNumber,
  hold,
  holdInherited,
  inheritedSlot,
  isAnonymousPipe,
  kAtFdCwd,
  kOAccessMode,
  kOCloexec,
  kODirect,
  kONonblock,
  kOReadWrite,
  kOWriteOnly,
  linkText,
  openBelowRoot,
  setStatusFlags,
} from './file-common.js';

const kFSetPipeSize = 1031;
const kMaxCapacityBytes = 1 << 30;

/** Pipes of this encoding whose content is written. */
const encoded = new WeakMap<EncodeContext, Set<bigint>>();

/** Writes the content record of a pipe or FIFO once, whichever end is met first. */
export function encodePipeData(ctx: EncodeContext, image: 'pipes-data' | 'fifo-data', inode: bigint): void {
  let done = encoded.get(ctx);
  if (done === undefined) encoded.set(ctx, (done = new Set()));
  if (done.has(inode)) return;
  done.add(inode);
  const pipe = ctx.capture.pipes.find((candidate) => candidate.inode === inode);
  if (pipe === undefined) return;
  const head = { pipe_id: Number(BigInt.asUintN(32, inode)), bytes: pipe.content.length, size: pipe.capacityBytes };
  ctx.images.add(image, undefined, head, pipe.content);
}

export interface PipeData {
  readonly head: pipe_data_entry;
  readonly content: Uint8Array;
}

/** The content record of a pipe, checked; the last one wins, as older images may hold several. */
export function pipeDataOf(
  ctx: CompileContext,
  image: 'pipes-data' | 'fifo-data',
  pipeId: number,
): PipeData | undefined {
  const entries: readonly ImageEntry<'pipe_data_entry'>[] = ctx.images.set.entries(image);
  const entry = entries.findLast((candidate) => candidate.message.pipe_id === pipeId);
  if (entry === undefined) return undefined;
  const size = entry.message.size ?? 0;
  if (size > kMaxCapacityBytes) throw corrupt(`${image}.img`, `gives pipe ${pipeId} a capacity of ${size} bytes`);
  return { head: entry.message, content: entry.payload };
}

/** Capacity and content into a pipe both of whose ends are open; `write` must not block. */
export function compilePipeData(ctx: CompileContext, write: SlotRef, data: PipeData | undefined, from: string): void {
  if (data === undefined) return;
  const task = ctx.root.builder;
  const size = data.head.size ?? 0;
  // The kernel's default of 16 pages needs no call.
  if (size > 0 && size !== 65536)
    task.step(Phase.FILES, 'fcntl', [write, kFSetPipeSize, size], { from, note: 'F_SETPIPE_SZ' });
  if (data.content.length > 0) {
    task.step(Phase.FILES, 'write', [write, ctx.plan.blob(data.content), data.content.length], {
      expected: data.content.length,
      from,
      note: 'unread bytes',
    });
  }
}

interface OpenPipe {
  readonly read: SlotRef;
  readonly write: SlotRef;
  /** Ends that some file has become already: the next file of the same end is another open file description. */
  readTaken: boolean;
  writeTaken: boolean;
  /** Any end, held: /proc/self/fd of it opens further descriptions. */
  held: SlotRef | undefined;
}
const pipes = new WeakMap<CompileContext, Map<number, OpenPipe>>();

export const pipeRoom: FileRoom = {
  kind: 'pipe',
  fdType: fd_types.PIPE,
  claims: (file) => isAnonymousPipe(file),

  encode(file, fileId, ctx) {
    const inode = file.stat?.inode ?? 0n;
    const external = ctx.options.externalFiles.has(linkText(file));
    if (!external) {
      encodePipeData(ctx, 'pipes-data', inode);
      noteLonelyEnd(file.statusFlags, inode, ctx, descriptorPhrase(file, ctx), ctx.subjectOfFile(file));
    }
    return {
      type: fd_types.PIPE,
      id: fileId,
      pipe: {
        id: fileId,
        pipe_id: Number(BigInt.asUintN(32, inode)),
        flags: file.statusFlags,
        fown: encodeOwner(file, ctx),
      },
    };
  },

  compile(entry, ctx) {
    const end = pipeOf(entry);
    const from = `file[${entry.id}]`;
    const external = inheritedSlot(ctx, [`pipe:[${end.pipe_id}]`], { needed: false });
    if (external !== undefined) return holdInherited(ctx, external, from);

    const pipe = openPipe(end.pipe_id, ctx, from);
    const task = ctx.root.builder;
    const access = end.flags & kOAccessMode;
    let low: SlotRef;
    if (access === kOWriteOnly && !pipe.writeTaken) {
      pipe.writeTaken = true;
      low = pipe.write;
    } else if (access === 0 && !pipe.readTaken) {
      pipe.readTaken = true;
      low = pipe.read;
    } else {
      low = reopen(pipe, access === kOReadWrite ? kOReadWrite : access, ctx, from);
    }
    setStatusFlags(task, Phase.FILES, low, end.flags, from, false);
    const slot = hold(ctx, low, `pipe:[${end.pipe_id}] ${access === kOWriteOnly ? 'write' : 'read'} end`, from);
    pipe.held ??= slot;
    return slot;
  },
};

function pipeOf(entry: file_entry): NonNullable<file_entry['pipe']> {
  if (entry.pipe === undefined) throw corrupt('files.img', `has no pipe in entry ${entry.id}`);
  return entry.pipe;
}

function openPipe(pipeId: number, ctx: CompileContext, from: string): OpenPipe {
  let known = pipes.get(ctx);
  if (known === undefined) pipes.set(ctx, (known = new Map()));
  let pipe = known.get(pipeId);
  if (pipe !== undefined) return pipe;
  const task = ctx.root.builder;
  const ends = ctx.plan.blob(new Uint8Array(0), [], 8);
  pipe = {
    read: ctx.plan.slot(`pipe:[${pipeId}] read end, low`),
    write: ctx.plan.slot(`pipe:[${pipeId}] write end, low`),
    readTaken: false,
    writeTaken: false,
    held: undefined,
  };
  // Non-blocking until the content is in: a plan must fail rather than hang.
  task.step(Phase.FILES, 'pipe2', [ends, kOCloexec | kONonblock], { from, note: `pipe:[${pipeId}]` });
  task.step(Phase.FILES, 'load', [ends, 0, 4], { out: pipe.read, from });
  task.step(Phase.FILES, 'load', [ends, 4, 4], { out: pipe.write, from });
  compilePipeData(ctx, pipe.write, pipeDataOf(ctx, 'pipes-data', pipeId), from);
  known.set(pipeId, pipe);
  return pipe;
}

/** A further open file description of the same pipe, as a target gets one by opening /proc/self/fd/N. */
function reopen(pipe: OpenPipe, access: number, ctx: CompileContext, from: string): SlotRef {
  pipe.held ??= hold(ctx, pipe.readTaken ? pipe.read : pipe.write, 'pipe, kept to open it again', from, {
    keepLow: true,
  });
  const low = ctx.plan.slot('pipe, opened again');
  const path = ctx.plan.text(`/proc/self/fd/${heldNumber(pipe.held)}`);
  ctx.root.builder.step(Phase.FILES, 'openat', [kAtFdCwd, path, access | kOCloexec | kONonblock, 0], {
    out: low,
    from,
  });
  return low;
}

/** Nobody in the tree holds the other end: either it was closed, or it is outside and would be lost. */
function noteLonelyEnd(
  flags: number,
  inode: bigint,
  ctx: EncodeContext,
  phrase: string,
  subject: ReturnType<EncodeContext['subjectOfFile']>,
): void {
  const access = flags & kOAccessMode;
  if (access === kOReadWrite) return;
  const peerExists = ctx.capture.openFiles.some(
    (other) => isAnonymousPipe(other) && other.stat?.inode === inode && (other.statusFlags & kOAccessMode) !== access,
  );
  if (peerExists) return;
  ctx.degrade(
    'PIPE_WITHOUT_PEER',
    `${phrase} is the ${access === kOWriteOnly ? 'write' : 'read'} end of pipe:[${inode}], whose other end is not in the tree; it is restored as closed`,
    subject,
  );
}

/** A FIFO by name: opened for both directions first, because opening one direction alone waits for the other. */
export function openFifo(ctx: CompileContext, path: string, pipeId: number, flags: number, from: string): SlotRef {
  let known = fifos.get(ctx);
  if (known === undefined) fifos.set(ctx, (known = new Map()));
  const task = ctx.root.builder;
  if (!known.has(pipeId)) {
    const both = openBelowRoot(ctx, task, Phase.FILES, path, kOReadWrite | kONonblock, from);
    compilePipeData(ctx, both, pipeDataOf(ctx, 'fifo-data', pipeId), from);
    known.set(pipeId, hold(ctx, both, `fifo ${pipeId}, kept while its ends are opened`, from));
  }
  const low = openBelowRoot(ctx, task, Phase.FILES, path, (flags & ~kODirect) | kONonblock, from);
  setStatusFlags(task, Phase.FILES, low, flags, from, false);
  return hold(ctx, low, path, from);
}
const fifos = new WeakMap<CompileContext, Map<number, SlotRef>>();
