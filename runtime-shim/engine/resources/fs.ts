// Working directory, root directory and umask of each process.
import type { fs_entry } from '../../../oci-spec/images/messages.js';
import type { CompileContext, PlannedTask } from '../compile-context.js';
import type { CapturedTask, EncodeContext } from '../encode-context.js';
import { Phase, type PhaseValue } from '../plan/builder.js';
import type { Room } from '../room.js';
import { kODirectory, kOPath, taskPhrase } from './file-common.js';
import { encodePathFile, openPathFile, pathOf } from './regular-file.js';

export const fsRoom: Room = {
  kind: 'fs',

  encode(ctx) {
    for (const task of ctx.tasks) {
      if (task.raw.zombie) continue;
      const entry = encodeFs(task, ctx);
      if (entry !== undefined) ctx.images.add('fs', task.nsPid, entry);
    }
  },

  compile(ctx) {
    for (const task of ctx.tasks.values()) {
      const fs = task.image.fs;
      if (!task.image.zombie && fs !== undefined) compileFs(ctx, task, fs);
    }
  },
};

function encodeFs(task: CapturedTask, ctx: EncodeContext): fs_entry | undefined {
  const { cwd, root } = task.raw;
  const subject = ctx.subjectOfTask(task);
  if (cwd === undefined || root === undefined) return undefined;
  const cwdId = encodePathFile(ctx, cwd, kODirectory, subject, `the working directory of ${taskPhrase(task)}`);
  const rootId = encodePathFile(ctx, root, kODirectory, subject, `the root directory of ${taskPhrase(task)}`);
  if (cwdId === undefined || rootId === undefined) return undefined;
  return { cwd_id: cwdId, root_id: rootId, umask: Number.parseInt(task.status.get('Umask') ?? '022', 8) };
}

function compileFs(ctx: CompileContext, task: PlannedTask, fs: fs_entry): void {
  const from = `fs-${task.image.pid}`;
  const { builder } = task;
  const phase = phaseOf(task);
  const directory = (id: number): ReturnType<typeof openPathFile> =>
    openPathFile(ctx, builder, phase, id, kOPath | kODirectory, from);
  // Both are opened from the root of the namespace, before the root of the task changes.
  const cwd = directory(fs.cwd_id);
  if (pathOf(ctx, fs.root_id, from).name !== '/') {
    const root = directory(fs.root_id);
    builder.step(phase, 'fchdir', [root], { from });
    builder.step(phase, 'chroot', [ctx.plan.text('.')], { from });
    builder.step(phase, 'close', [root], { from });
  }
  builder.step(phase, 'fchdir', [cwd], { from });
  builder.step(phase, 'close', [cwd], { from });
  if (fs.umask !== undefined) builder.step(phase, 'umask', [fs.umask & 0o777], { from });
}

/** Where the table is shared, its owner fills it in DESCRIPTORS: opening anything meanwhile would take its numbers. */
function phaseOf(task: PlannedTask): PhaseValue {
  return (task.builder.cloneFlags & 0x400n) !== 0n ? Phase.MEMORY : Phase.DESCRIPTORS;
}
