// File locks: flock(2), POSIX ones and those of open file descriptions
// (fcntl(2)). The kernel lists them in the fdinfo of the file that they were
// taken through, and all of the machine in /proc/locks. A restore takes them
// again, once nothing is closed any more: a process that closes any descriptor
// of a file loses its POSIX locks on it.
import type { OpenFile } from '../../../nativecore/schema/messages.js';
import type { file_lock_entry } from '../../../oci-spec/images/messages.js';
import type { CompileContext, PlannedTask } from '../compile-context.js';
import type { CapturedTask, EncodeContext } from '../encode-context.js';
import { Phase } from '../plan/builder.js';
import { textOf } from '../proc-text.js';
import type { Room } from '../room.js';
import { corrupt, linkText, taskPhrase } from './file-common.js';

/** One line of /proc/locks: "1: POSIX  ADVISORY  WRITE 4711 fe:00:2146869 0 EOF". */
interface Lock {
  readonly kind: string;
  readonly access: string;
  /** Of whoever took it; -1 where it belongs to an open file description. */
  readonly hostPid: number;
  /** major << 20 | minor */
  readonly device: bigint;
  readonly inode: bigint;
  readonly start: bigint;
  /** 0: to the end of the file, however long it becomes. */
  readonly lengthBytes: bigint;
}

export function parseLocks(text: string): Lock[] {
  return text.split('\n').flatMap((line) => {
    // A line with "->" is somebody waiting for the lock above it.
    const match =
      /^\d+:\s+(?!->)(\S+)\s+\S+\s+(\S+)\s+(-?\d+)\s+([0-9a-f]+):([0-9a-f]+):(\d+)\s+(\d+)\s+(\d+|EOF)\s*$/.exec(line);
    if (match === null) return [];
    const [, kind = '', access = '', pid, major, minor, inode = '', first = '', last = ''] = match;
    const start = BigInt(first);
    return [
      {
        kind,
        access,
        hostPid: Number(pid),
        device: (BigInt(`0x${major}`) << 20n) | BigInt(`0x${minor}`),
        inode: BigInt(inode),
        start,
        lengthBytes: last === 'EOF' ? 0n : BigInt(last) - start + 1n,
      },
    ];
  });
}

/** Flags of file_lock_entry. */
const lockFlag = { POSIX: 1, FLOCK: 2, OFDLCK: 4 } as const;
type Kind = keyof typeof lockFlag;
/** Types of file_lock_entry, for all kinds: F_RDLCK and F_WRLCK of fcntl(2). */
const lockType = { READ: 0, WRITE: 1 } as const;
type Access = keyof typeof lockType;
const flockOperation: Readonly<Record<Access, number>> = { READ: 1, WRITE: 2 }; // LOCK_SH, LOCK_EX
const kLockNonBlocking = 4; // LOCK_NB
const kSetLock = 6; // F_SETLK
const kSetDescriptionLock = 37; // F_OFD_SETLK
const kAccessMode = 3; // O_ACCMODE
const kReadOnly = 0;
const kWriteOnly = 1;

export const fileLocksRoom: Room = {
  kind: 'file-locks',

  encode(ctx) {
    const files = ctx.capture.openFiles.map(listingOf);
    for (const held of [...locksOfFiles(files, ctx), ...locksOfProcesses(files, ctx)]) {
      const entry = entryOf(held, ctx);
      if (entry !== undefined) ctx.images.add('filelocks', undefined, entry);
    }
  },

  compile(ctx) {
    for (const entry of ctx.images.set.messages('filelocks')) compileLock(entry, ctx);
  },
};

interface HeldLock {
  readonly lock: Lock;
  readonly task: CapturedTask;
  /** Undefined: none of the task's descriptors shows the file. */
  readonly descriptor: { readonly fd: number; readonly file: OpenFile } | undefined;
}

function entryOf({ lock, task, descriptor }: HeldLock, ctx: EncodeContext): file_lock_entry | undefined {
  const kind = lock.kind === 'FLOCK' ? 'flock' : lock.kind;
  const name = `${taskPhrase(task)} holds a ${kind} lock (${lock.access.toLowerCase()})`;
  const flag = lockFlag[lock.kind as Kind] as number | undefined;
  const type = lockType[lock.access as Access] as number | undefined;
  if (flag !== undefined && type !== undefined && descriptor !== undefined && !isMemfd(descriptor.file))
    return {
      flag,
      type,
      pid: task.nsPid,
      fd: descriptor.fd,
      start: lock.start,
      len: lock.lengthBytes,
    };
  const place = descriptor === undefined ? `inode ${lock.inode}` : `"${linkText(descriptor.file)}"`;
  const why =
    descriptor === undefined
      ? 'no descriptor of it shows that file'
      : flag === undefined || type === undefined
        ? 'locks of this kind are not carried'
        : 'locks on memfds are not carried';
  ctx.object(
    'CAPTURE_FD_UNSUPPORTED',
    `${name} on ${place}; ${why}`,
    { ...ctx.subjectOfTask(task), ...(descriptor === undefined ? {} : { path: linkText(descriptor.file) }) },
    'let the process release the lock before the checkpoint',
  );
  return undefined;
}

/** A restore closes descriptors of memfds late: POSIX locks on them would not last. */
const isMemfd = (file: OpenFile): boolean => linkText(file).startsWith('/memfd:');

/** What the fdinfo of an open file says of locks. */
interface Listing {
  readonly file: OpenFile;
  /** The file system's own number, which stat(2) on an overlay does not tell (before Linux 5.14: stat's). */
  readonly inode: bigint | undefined;
  readonly locks: readonly Lock[];
}

function listingOf(file: OpenFile): Listing {
  const fdinfo = textOf(file.fdinfo);
  const inode = /^ino:\s*(\d+)/m.exec(fdinfo)?.[1];
  return {
    file,
    inode: inode === undefined ? file.stat?.inode : BigInt(inode),
    // As hardly any file has.
    locks: fdinfo.includes(kLockLabel) ? parseLocks(fdinfo.replaceAll(kLockLabel, '\n')) : kNoLocks,
  };
}
const kLockLabel = '\nlock:\t';
const kNoLocks: readonly Lock[] = [];

/**
 * flock, open file description locks and leases belong to the open file, whoever took them. (POSIX ones are listed there
 * only of the process that the list was read from.)
 */
function locksOfFiles(files: readonly Listing[], ctx: EncodeContext): HeldLock[] {
  return files.flatMap(({ file, locks }) => {
    const task = ctx.taskOfHostPid(file.hostPid);
    if (task === undefined) return [];
    return locks.flatMap((lock) => (lock.kind === 'POSIX' ? [] : [{ lock, task, descriptor: { fd: file.fd, file } }]));
  });
}

/** POSIX locks belong to the process. */
function locksOfProcesses(files: readonly Listing[], ctx: EncodeContext): HeldLock[] {
  return parseLocks(textOf(ctx.capture.procLocks)).flatMap((lock) => {
    const task = lock.kind === 'POSIX' ? ctx.taskOfHostPid(lock.hostPid) : undefined;
    return task === undefined ? [] : [{ lock, task, descriptor: descriptorOf(lock, task, files) }];
  });
}

/**
 * Of the locked file, open in a mode that the lock needs. Both lists have the file system's own device and inode; so it is
 * first what lists this lock itself, then who has the number.
 */
function descriptorOf(lock: Lock, task: CapturedTask, files: readonly Listing[]): HeldLock['descriptor'] {
  const open = task.raw.fds.flatMap(({ fd, openFile }) => {
    const listing = files[openFile];
    return listing === undefined ? [] : [{ fd, ...listing }];
  });
  const suitable = open.filter(({ file, inode }) => {
    const mode = file.statusFlags & kAccessMode;
    return inode === lock.inode && mode !== (lock.access === 'WRITE' ? kReadOnly : kWriteOnly);
  });
  return (
    open.find(({ locks }) => locks.some((own) => isSame(own, lock))) ??
    suitable.find(({ file }) => file.stat?.device === lock.device) ??
    suitable[0]
  );
}

function isSame(one: Lock, other: Lock): boolean {
  return (
    one.kind === other.kind &&
    one.hostPid === other.hostPid &&
    one.device === other.device &&
    one.inode === other.inode &&
    one.start === other.start &&
    one.lengthBytes === other.lengthBytes
  );
}

const kImage = 'filelocks.img';

function compileLock(entry: file_lock_entry, ctx: CompileContext): void {
  const task = ctx.tasks.get(entry.pid);
  const descriptor = task?.image.fds.find(({ fd }) => fd === entry.fd);
  if (task === undefined || task.image.zombie || descriptor === undefined)
    throw corrupt(kImage, `has a lock of fd ${entry.fd} of pid ${entry.pid}, which is not there`);
  const kind = (Object.keys(lockFlag) as Kind[]).find((name) => lockFlag[name] === entry.flag);
  const access = (Object.keys(lockType) as Access[]).find((name) => lockType[name] === entry.type);
  if (kind === undefined || access === undefined) {
    ctx.object(
      'IMAGE_FEATURE_UNSUPPORTED',
      `"${kImage}" has a lock of kind ${entry.flag}, type ${entry.type}, on fd ${entry.fd} of pid ${entry.pid}, which is not carried`,
      { nsPid: entry.pid, targetFd: entry.fd, image: kImage },
    );
    return;
  }
  if (entry.start < 0n || entry.len < 0n || entry.start + entry.len > kLastOffset)
    throw corrupt(kImage, `has a lock of impossible range on fd ${entry.fd} of pid ${entry.pid}`);
  // Its room has objected.
  if (!ctx.fileSlots.has(descriptor.id) && !ctx.filesInPlace.has(descriptor.id)) return;
  lockAgain(entry, kind, access, task, ctx);
}

const kLastOffset = 2n ** 63n - 1n;

function lockAgain(entry: file_lock_entry, kind: Kind, access: Access, task: PlannedTask, ctx: CompileContext): void {
  const from = `filelocks.${entry.pid}.${entry.fd}`;
  if (kind === 'FLOCK') {
    task.builder.step(Phase.THREADS, 'flock', [entry.fd, flockOperation[access] | kLockNonBlocking], {
      from,
      note: access,
    });
    return;
  }
  const range = entry.len === 0n ? `${entry.start} to the end` : `${entry.start} to ${entry.start + entry.len - 1n}`;
  task.builder.step(
    Phase.THREADS,
    'fcntl',
    [entry.fd, kind === 'OFDLCK' ? kSetDescriptionLock : kSetLock, ctx.plan.blob(flockStructure(entry))],
    { from, note: `${access} lock, ${range}` },
  );
}

/** struct flock of x86-64: l_type, l_whence (SEEK_SET), l_start, l_len, l_pid (0). */
function flockStructure(entry: file_lock_entry): Buffer {
  const bytes = Buffer.alloc(32);
  bytes.writeInt16LE(entry.type, 0);
  bytes.writeBigInt64LE(entry.start, 8);
  bytes.writeBigInt64LE(entry.len, 16);
  return bytes;
}
