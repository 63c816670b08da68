// epoll: registrations from the tfd lines of fdinfo. A registration belongs to
// a file and the number it had in the table of whoever made it, so it is made
// again in a task whose table has that file at that number.
import type { OpenFile } from '../../../nativecore/schema/messages.js';
import { fd_types, type eventpoll_tfd_entry } from '../../../oci-spec/images/messages.js';
import type { CompileContext } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import { Phase } from '../plan/builder.js';
import { parseFdinfo } from '../proc-text.js';
import type { FileRoom } from '../room.js';
import {
  corrupt,
  descriptorPhrase,
  encodeOwner,
  hold,
  isAnonInode,
  kOCloexec,
  objectToUnreadable,
  plannedTaskAt,
} from './file-common.js';

const kEpollCtlAdd = 1;

const kTarget =
  /^(\d+) events:\s*([0-9a-f]+) data:\s*([0-9a-f]+)(?:\s+pos:\s*(\d+))?(?:\s+ino:\s*([0-9a-f]+))?(?:\s+sdev:\s*([0-9a-f]+))?/;

/** Registrations not made yet, by file id. */
const pending = new WeakMap<CompileContext, Map<number, Set<eventpoll_tfd_entry>>>();

export const epollRoom: FileRoom = {
  kind: 'epoll',
  fdType: fd_types.EVENTPOLL,
  claims: (file) => isAnonInode(file, 'eventpoll'),

  encode(file, fileId, ctx) {
    const targets: eventpoll_tfd_entry[] = [];
    for (const line of parseFdinfo(file.fdinfo).get('tfd') ?? []) {
      const match = kTarget.exec(line);
      if (match === null) {
        objectToUnreadable(file, ctx, 'an epoll instance whose targets');
        return undefined;
      }
      const hex = (index: number): bigint => BigInt(`0x${match[index] ?? '0'}`);
      const target: eventpoll_tfd_entry = {
        id: fileId,
        tfd: Number(match[1]),
        events: Number(hex(2)),
        data: hex(3),
        dev: Number(hex(6)),
        inode: hex(5),
        pos: BigInt(match[4] ?? 0),
      };
      targets.push(target);
      if (match[5] !== undefined && !isHeldSomewhere(file, target, ctx)) {
        ctx.object(
          'CAPTURE_FD_UNSUPPORTED',
          `${descriptorPhrase(file, ctx)} is an epoll instance that watches a file by number ${target.tfd}, but no task has that file at this number any more`,
          ctx.subjectOfFile(file),
          'let the process remove the registration before it closes a duplicated descriptor',
        );
      }
    }
    return {
      type: fd_types.EVENTPOLL,
      id: fileId,
      epfd: { id: fileId, flags: file.statusFlags, fown: encodeOwner(file, ctx), tfd: targets },
    };
  },

  compile(entry, ctx) {
    const epoll = entry.epfd;
    if (epoll === undefined) throw corrupt('files.img', `has no epoll in entry ${entry.id}`);
    const from = `file[${entry.id}]`;
    let open = pending.get(ctx);
    if (open === undefined) pending.set(ctx, (open = new Map()));
    open.set(entry.id, new Set(epoll.tfd));
    for (const target of epoll.tfd) {
      const holder = ctx.images.tasks.some(
        (task) => task.fds.some((fd) => fd.id === entry.id) && task.fds.some((fd) => fd.fd === target.tfd),
      );
      if (!holder)
        throw corrupt(
          'files.img',
          `has an epoll (file ${entry.id}) that watches fd ${target.tfd}, which no task with this epoll has`,
        );
    }
    const low = ctx.plan.slot('epoll');
    ctx.root.builder.step(Phase.FILES, 'epoll_create1', [kOCloexec], { out: low, from });
    return hold(ctx, low, `epoll ${entry.id}`, from);
  },

  compileInTask(entry, use, ctx) {
    const open = pending.get(ctx)?.get(entry.id);
    if (open === undefined || open.size === 0) return;
    const task = plannedTaskAt(ctx, use.taskIndex);
    const image = [...ctx.tasks.values()].find((planned) => planned.builder === task)?.image;
    const own = new Set(image?.fds.map((fd) => fd.fd) ?? []);
    for (const target of [...open]) {
      if (!own.has(target.tfd)) continue;
      open.delete(target);
      const event = Buffer.alloc(12);
      event.writeUInt32LE(target.events >>> 0, 0);
      event.writeBigUInt64LE(target.data, 4);
      task.step(Phase.DESCRIPTORS, 'epoll_ctl', [use.fd, kEpollCtlAdd, target.tfd, ctx.plan.blob(event)], {
        from: `file[${entry.id}].tfd`,
        note: `fd ${target.tfd} events 0x${target.events.toString(16)}`,
      });
    }
  },
};

/** Does some task that has this epoll have the watched file at the watched number? */
function isHeldSomewhere(epoll: OpenFile, target: eventpoll_tfd_entry, ctx: EncodeContext): boolean {
  const at = ctx.capture.openFiles.indexOf(epoll);
  return ctx.capture.tasks.some((task) => {
    if (!task.fds.some((fd) => fd.openFile === at)) return false;
    const file = task.fds.find((fd) => fd.fd === target.tfd);
    return file !== undefined && ctx.capture.openFiles[file.openFile]?.stat?.inode === target.inode;
  });
}
