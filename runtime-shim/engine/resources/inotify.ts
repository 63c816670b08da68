// inotify: watches from fdinfo, with the paths that the capture found for them.
// An instance is made with the other files and is empty; its watches are added
// last, when no task of a restore opens or closes a file any more, so that it
// never hears of the restore. The kernel lets nobody put back unread events.
import type { OpenFile, WatchedFile } from '../../../nativecore/schema/messages.js';
import { fd_types, type inotify_file_entry, type inotify_wd_entry } from '../../../oci-spec/images/messages.js';
import type { CompileContext, PlannedTask } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import { Phase } from '../plan/builder.js';
import { parseFdinfo } from '../proc-text.js';
import type { FileRoom, Room } from '../room.js';
import {
  corrupt,
  descriptorPhrase,
  encodeOwner,
  hold,
  isAnonInode,
  kOAsync,
  kONonblock,
  linkText,
  objectToUnreadable,
  setStatusFlags,
} from './file-common.js';
import { checkPath, pathOf } from './regular-file.js';

const kAllEvents = 0xfff;
const kDontFollow = 0x0200_0000;
const kExclUnlink = 0x0400_0000;
const kMaskCreate = 0x1000_0000;
const kOneShot = 0x8000_0000;

// _IOW('I', 0, __s32), linux/inotify.h
const kSetNextWatch = 0x40044900;
const kMaximalWatch = 0x7fff_ffff;

/** Words of a file handle that readers of the format expect at least. */
const kHandleWords = 16;
const kWordBytes = 8;

const kWatch =
  /^wd:([0-9a-f]+) ino:([0-9a-f]+) sdev:([0-9a-f]+) mask:([0-9a-f]+) ignored_mask:([0-9a-f]+)(?: fhandle-bytes:([0-9a-f]+) fhandle-type:([0-9a-f]+) f_handle:([0-9a-f]+))?/;

export const inotifyRoom: FileRoom = {
  kind: 'inotify',
  fdType: fd_types.INOTIFY,
  claims: (file) => isAnonInode(file, 'inotify'),

  encode(file, fileId, ctx) {
    const wd: inotify_wd_entry[] = [];
    const foundFiles = new Map(file.watchedFiles.map((watched) => [watched.watch, watched]));
    for (const line of parseFdinfo(file.fdinfo).get('inotify wd') ?? []) {
      const watch = encodeWatch(`wd:${line}`, foundFiles, file, fileId, ctx);
      if (watch !== undefined) wd.push(watch);
    }
    if (file.unreadBytes > 0)
      ctx.degrade(
        'INOTIFY_EVENTS_LOST',
        `${descriptorPhrase(file, ctx)} is an inotify instance with ${file.unreadBytes} bytes of unread events, which are lost`,
        ctx.subjectOfFile(file),
      );
    return {
      type: fd_types.INOTIFY,
      id: fileId,
      ify: { id: fileId, flags: file.statusFlags, fown: encodeOwner(file, ctx), wd },
    };
  },

  compile(entry, ctx) {
    const { ify } = entry;
    if (ify === undefined) throw corrupt('files.img', `has no inotify in entry ${entry.id}`);
    checkWatches(ify);
    const from = `file[${entry.id}]`;
    const task = ctx.root.builder;
    const low = ctx.plan.slot('inotify');
    task.step(Phase.FILES, 'inotify_init1', [ify.flags & kONonblock], { out: low, from });
    if ((ify.flags & kOAsync) !== 0) setStatusFlags(task, Phase.FILES, low, ify.flags, from);
    return hold(ctx, low, `inotify ${entry.id}`, from);
  },
};

export const watchesRoom: Room = {
  kind: 'watches',

  compile(ctx) {
    for (const { id, ify } of ctx.images.files.values())
      if (ify !== undefined && ctx.fileSlots.has(id)) addWatches(ify, id, ctx);
  },
};

function encodeWatch(
  line: string,
  foundFiles: ReadonlyMap<number, WatchedFile>,
  file: OpenFile,
  fileId: number,
  ctx: EncodeContext,
): inotify_wd_entry | undefined {
  const match = kWatch.exec(line);
  if (match === null) {
    objectToUnreadable(file, ctx, 'an inotify instance whose watches');
    return undefined;
  }
  const hex = (index: number): bigint => BigInt(`0x${match[index] ?? '0'}`);
  const wd = Number(hex(1));
  const inode = hex(2);
  const device = hex(3);
  const found = foundFiles.get(wd);
  const path = pathOfWatch(found, { wd, inode, device }, file, ctx);
  if (path === undefined) return undefined;
  return {
    id: fileId,
    i_ino: inode,
    mask: Number(hex(4)),
    ignored_mask: Number(hex(5)),
    s_dev: Number(device),
    wd,
    f_handle: {
      bytes: Number(hex(6)),
      type: Number(hex(7)),
      handle: handleWords(Buffer.from(match[8] ?? '', 'hex')),
      path,
      mnt_id: Number(found?.path?.stat?.mountId ?? 0n),
    },
  };
}

function pathOfWatch(
  found: WatchedFile | undefined,
  watch: { readonly wd: number; readonly inode: bigint; readonly device: bigint },
  file: OpenFile,
  ctx: EncodeContext,
): string | undefined {
  if (found?.path?.pathMatches === true) return linkText(found.path);
  const what = `watch ${watch.wd} of ${descriptorPhrase(file, ctx)}, an inotify instance,`;
  const place = `inode ${watch.inode} on device ${watch.device >> 20n}:${watch.device & 0xfffffn}`;
  if (found !== undefined) {
    // It would tell of the end of that file, and of nothing else that others could do to it.
    ctx.degrade('INOTIFY_WATCH_LOST', `${what} is on a deleted file (${place}), and is lost`, ctx.subjectOfFile(file));
    return undefined;
  }
  ctx.object(
    'CAPTURE_FD_UNSUPPORTED',
    `${what} is on ${place}, for which no path was found in the container`,
    ctx.subjectOfFile(file),
    'let the process remove the watch, or give the file a name where the container sees it',
  );
  return undefined;
}

function handleWords(bytes: Buffer): bigint[] {
  const words = Math.max(kHandleWords, Math.ceil(bytes.length / kWordBytes));
  const padded = Buffer.alloc(words * kWordBytes);
  bytes.copy(padded);
  return Array.from({ length: words }, (_, index) => padded.readBigUInt64LE(index * kWordBytes));
}

function checkWatches({ id, wd: watches }: inotify_file_entry): void {
  const numbers = new Set<number>();
  for (const { wd } of watches) {
    if (wd < 1 || wd > kMaximalWatch || numbers.has(wd))
      throw corrupt('files.img', `has watch ${wd} of inotify ${id} twice or out of range`);
    numbers.add(wd);
  }
}

function addWatches(ify: inotify_file_entry, id: number, ctx: CompileContext): void {
  const holder = holderOf(id, ctx);
  if (holder === undefined) return;
  const { task, fd, root } = holder;
  const from = `file[${id}].wd`;
  // The kernel counts on from the number that it gave last.
  let next = 1;
  for (const watch of [...ify.wd].sort((a, b) => a.wd - b.wd)) {
    const path = pathBelow(root, watch, id, ctx);
    if (path === undefined) continue;
    if (watch.wd !== next)
      task.builder.step(Phase.CREDENTIALS, 'ioctl', [fd, kSetNextWatch, watch.wd], {
        from,
        note: 'INOTIFY_IOC_SETNEXTWD',
      });
    // The path is that of what is watched, be it a link. A second watch on one file would change the first.
    const mask = (watch.mask & (kAllEvents | kExclUnlink | kOneShot)) | kDontFollow | kMaskCreate;
    task.builder.step(Phase.CREDENTIALS, 'inotify_add_watch', [fd, ctx.plan.text(path), mask >>> 0], {
      expected: watch.wd,
      from,
      note: path,
    });
    next = watch.wd + 1;
  }
}

interface Holder {
  readonly task: PlannedTask;
  readonly fd: number;
  readonly root: string;
}

/** A task that has the instance, if possible one that sees all of the container. */
function holderOf(id: number, ctx: CompileContext): Holder | undefined {
  const holders = [...ctx.tasks.values()].flatMap((task): Holder[] => {
    const descriptor = task.image.fds.find((entry) => entry.id === id);
    if (task.image.zombie || descriptor === undefined) return [];
    const { fs, pid } = task.image;
    return [{ task, fd: descriptor.fd, root: fs === undefined ? '/' : pathOf(ctx, fs.root_id, `fs-${pid}`).name }];
  });
  return holders.find(({ root }) => root === '/') ?? holders[0];
}

/** As a process with that root names it; undefined after objecting. */
function pathBelow(root: string, watch: inotify_wd_entry, id: number, ctx: CompileContext): string | undefined {
  const subject = { image: 'files.img' };
  if (watch.f_handle.path === undefined || watch.f_handle.path === '') {
    ctx.object(
      'IMAGE_FEATURE_UNSUPPORTED',
      `watch ${watch.wd} of inotify ${id} is on inode ${watch.i_ino}, whose path is not in the images`,
      subject,
    );
    return undefined;
  }
  // Readers of the format take it without the first slash, too.
  const path = watch.f_handle.path.startsWith('/') ? watch.f_handle.path : `/${watch.f_handle.path}`;
  checkPath({ name: path }, id);
  if (root === '/') return path;
  if (path === root) return '/';
  if (path.startsWith(`${root}/`)) return path.slice(root.length);
  ctx.object(
    'IMAGE_FEATURE_UNSUPPORTED',
    `watch ${watch.wd} of inotify ${id} is on "${path}", outside of the root directory "${root}" of its process`,
    { ...subject, path },
  );
  return undefined;
}
