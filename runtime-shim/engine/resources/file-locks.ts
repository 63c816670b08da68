// File locks held by the tree. They are refused by holder and file: a restored
// program would believe in a lock that it does not have.
import type { OpenFile } from '../../../nativecore/schema/messages.js';
import type { CapturedTask, EncodeContext } from '../encode-context.js';
import { parseFdinfo } from '../proc-text.js';
import type { Room } from '../room.js';
import { linkText, taskPhrase } from './file-common.js';

/** One line of /proc/locks: "1: POSIX  ADVISORY  WRITE 4711 fe:00:2146869 0 EOF". */
interface Lock {
  readonly kind: string;
  readonly access: string;
  readonly hostPid: number;
  /** major << 20 | minor */
  readonly device: bigint;
  readonly inode: bigint;
}

export function parseLocks(bytes: Uint8Array): Lock[] {
  return Buffer.from(bytes)
    .toString('latin1')
    .split('\n')
    .flatMap((line) => {
      // A line with "->" is somebody waiting for the lock above it.
      const match = /^\d+:\s+(?!->)(\S+)\s+\S+\s+(\S+)\s+(-?\d+)\s+([0-9a-f]+):([0-9a-f]+):(\d+)\s/.exec(`${line} `);
      if (match === null) return [];
      return [
        {
          kind: match[1] ?? '',
          access: match[2] ?? '',
          hostPid: Number(match[3]),
          device: (BigInt(`0x${match[4]}`) << 20n) | BigInt(`0x${match[5]}`),
          inode: BigInt(match[6] ?? 0),
        },
      ];
    });
}

export const fileLocksRoom: Room = {
  kind: 'file-locks',

  encode(ctx) {
    const told = new Set<string>();
    for (const { lock, task, file } of [...locksOfFiles(ctx), ...locksOfProcesses(ctx)]) {
      const kind = lock.kind === 'FLOCK' ? 'flock' : lock.kind;
      const key = `${task.nsPid} ${kind} ${linkText(file)}`;
      if (told.has(key)) continue;
      told.add(key);
      ctx.object(
        'CAPTURE_FD_UNSUPPORTED',
        `${taskPhrase(task)} holds a ${kind} lock (${lock.access.toLowerCase()}) on "${linkText(file)}"; file locks are not carried`,
        { ...ctx.subjectOfTask(task), path: linkText(file) },
        'let the process release the lock before the checkpoint',
      );
    }
  },

  compile(ctx) {
    if (ctx.images.set.entries('filelocks').length > 0)
      ctx.object('IMAGE_FEATURE_UNSUPPORTED', '"filelocks.img" holds file locks, which are not carried', {
        image: 'filelocks.img',
      });
  },
};

interface HeldLock {
  readonly lock: Lock;
  readonly task: CapturedTask;
  readonly file: OpenFile;
}

/** flock, OFD locks and leases belong to the open file, whoever took them: its fdinfo lists them. */
function locksOfFiles(ctx: EncodeContext): HeldLock[] {
  return ctx.capture.openFiles.flatMap((file) => {
    const task = ctx.taskOfHostPid(file.hostPid);
    const lines = parseFdinfo(file.fdinfo).get('lock') ?? [];
    return task === undefined ? [] : parseLocks(Buffer.from(lines.join('\n'))).map((lock) => ({ lock, task, file }));
  });
}

/** POSIX locks belong to the process. */
function locksOfProcesses(ctx: EncodeContext): HeldLock[] {
  return parseLocks(ctx.capture.procLocks).flatMap((lock) => {
    const task = ctx.taskOfHostPid(lock.hostPid);
    for (const descriptor of task?.raw.fds ?? []) {
      const file = ctx.capture.openFiles[descriptor.openFile];
      if (task !== undefined && file?.stat?.inode === lock.inode && file.stat.device === lock.device)
        return [{ lock, task, file }];
    }
    return [];
  });
}
