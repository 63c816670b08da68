// Descriptor tables: which number of which task is which open file. On restore
// every task puts what it inherited at high numbers onto its own numbers, opens
// what only it has, then closes the rest; tables that tasks share are filled by
// the first of them.
import { fd_types, type fdinfo_entry } from '../../../oci-spec/images/messages.js';
import type { CompileContext, PlannedTask } from '../compile-context.js';
import { Phase } from '../plan/builder.js';
import type { DescriptorPlace, Room } from '../room.js';
import {
  compileOwner,
  corrupt,
  kMaxDescriptor,
  kOCloexec,
  namespaceRoot,
  releaseHeldDescriptors,
} from './file-common.js';
import { roomOfType } from './files.js';

const kCloneFiles = 0x400n;
const kFdCloexec = 1;

export const descriptorsRoom: Room = {
  kind: 'descriptors',

  encode(ctx) {
    const written = new Set<number>();
    for (const task of ctx.tasks) {
      if (task.raw.zombie) continue;
      const table = ctx.filesId(task);
      if (written.has(table)) continue;
      written.add(table);
      for (const descriptor of task.raw.fds) {
        const id = ctx.openFileId(descriptor.openFile);
        // Its room has objected.
        if (id === undefined) continue;
        ctx.images.add('fdinfo', table, {
          id,
          flags: descriptor.closeOnExec ? kFdCloexec : 0,
          type: ctx.fileEntry(id)?.type ?? fd_types.UND,
          fd: descriptor.fd,
        });
      }
    }
  },

  compile(ctx) {
    const owned = new Set<number>();
    const signalled = new Set<number>();
    for (const task of ctx.tasks.values()) {
      if (task.image.zombie) continue;
      if (sharesParentTable(ctx, task)) {
        task.builder.cloneFlags |= kCloneFiles;
        continue;
      }
      compileTable(ctx, task);
      owned.add(task.image.pid);
    }
    // Registrations and owners: once every descriptor of the task is in place.
    for (const task of ctx.tasks.values()) {
      if (!owned.has(task.image.pid)) continue;
      for (const descriptor of sorted(task)) {
        const entry = ctx.images.files.get(descriptor.id);
        if (entry === undefined) continue;
        const use = { taskIndex: task.builder.index, fd: descriptor.fd };
        roomOfType(entry.type)?.compileInTask?.(entry, use, ctx);
        if (signalled.has(entry.id)) continue;
        signalled.add(entry.id);
        const owner = ownerOf(entry);
        if (owner !== undefined)
          compileOwner(owner, descriptor.fd, ctx, task.builder, Phase.DESCRIPTORS, `file[${entry.id}]`);
      }
    }
  },
};

function sharesParentTable(ctx: CompileContext, task: PlannedTask): boolean {
  const parent = ctx.tasks.get(task.image.entry.ppid);
  const table = task.image.ids?.files_id;
  if (table === undefined) return false;
  if (parent !== undefined && parent !== task && parent.image.ids?.files_id === table) return true;
  const other = [...ctx.tasks.values()].find(
    (candidate) => candidate !== task && candidate.image.ids?.files_id === table,
  );
  // A child comes after its parent, so the first user of a table that is not its parent's owns it.
  if (other !== undefined && other.builder.index < task.builder.index)
    throw corrupt(
      `ids-${task.image.pid}.img`,
      `shares a descriptor table with pid ${other.image.pid}, which is not its parent`,
    );
  return false;
}

function sorted(task: PlannedTask): fdinfo_entry[] {
  return [...task.image.fds].sort((a, b) => a.fd - b.fd);
}

/**
 * In order of number, into a table without low numbers: a file that is opened then gets the lowest free one, and where
 * that is its own, opening it is all.
 */
function compileTable(ctx: CompileContext, task: PlannedTask): void {
  const { builder } = task;
  const from = `fdinfo-${task.image.ids?.files_id ?? 0}`;
  const own = checked(ctx, task, from);
  const dense = endOfDense(ctx, own);
  const fillers: (readonly [number, number])[] = [];
  closeBetween(ctx, task, 0, ctx.highFdBase - 1, from);
  let next = 0;
  for (const { fd, id, flags } of own) {
    if (next < fd && fd < dense) {
      fillers.push([next, fd - 1]);
      for (; next < fd; next += 1)
        builder.step(Phase.DESCRIPTORS, 'dup3', [namespaceRoot(ctx), next, kOCloexec], {
          from,
          note: 'taken until the files above are open',
        });
    }
    next = fd + 1;
    const closeOnExec = (flags & kFdCloexec) !== 0;
    const slot = ctx.fileSlots.get(id);
    if (slot !== undefined)
      builder.step(Phase.DESCRIPTORS, 'dup3', [slot, fd, closeOnExec ? kOCloexec : 0], {
        from: `${from}.${fd}`,
        note: slot.name,
      });
    else openOwn(ctx, id, { task: builder, fd, isLowest: fd < dense, closeOnExec });
  }
  for (const [first, last] of fillers) closeBetween(ctx, task, first, last, from);
  // All but the root directory at highFdBase, which mapped files are opened below later.
  const kept = ctx.keptDescriptors + ctx.keptForMappings;
  builder.step(Phase.DESCRIPTORS, 'close_range', [ctx.highFdBase + 1 + kept, 0xffffffff, 0], {
    from,
    note: 'what was held',
  });
  releaseHeldDescriptors(ctx, builder, from);
}

/** In order of number, without what has been objected to. */
function checked(ctx: CompileContext, task: PlannedTask, from: string): fdinfo_entry[] {
  let next = 0;
  return sorted(task).filter(({ fd, id }) => {
    if (fd < next || fd >= kMaxDescriptor) throw corrupt(`${from}.img`, `names fd ${fd} twice or out of range`);
    next = fd + 1;
    return ctx.fileSlots.has(id) || ctx.filesInPlace.has(id);
  });
}

/** The number up to which it pays to leave none free: a filler is one step, a file opened elsewhere two more. */
function endOfDense(ctx: CompileContext, own: readonly fdinfo_entry[]): number {
  let inPlace = own.filter(({ id }) => ctx.filesInPlace.has(id)).length;
  let end = 0;
  for (const { fd, id } of own) {
    if (fd - end > 2 * inPlace) break;
    end = fd + 1;
    if (ctx.filesInPlace.has(id)) inPlace -= 1;
  }
  return end;
}

function openOwn(ctx: CompileContext, id: number, place: DescriptorPlace): void {
  const entry = ctx.images.files.get(id);
  if (entry !== undefined) roomOfType(entry.type)?.openInPlace?.(entry, place, ctx);
}

function closeBetween(ctx: CompileContext, task: PlannedTask, first: number, last: number, from: string): void {
  if (first <= last) task.builder.step(Phase.DESCRIPTORS, 'close_range', [first, last, 0], { from });
}

function ownerOf(entry: object): Parameters<typeof compileOwner>[0] | undefined {
  for (const member of Object.values(entry) as unknown[])
    if (typeof member === 'object' && member !== null && 'fown' in member)
      return member.fown as Parameters<typeof compileOwner>[0];
  return undefined;
}
