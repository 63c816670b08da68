// eventfd: counter and flags from fdinfo.
import { fd_types } from '../../../oci-spec/images/messages.js';
import { Phase } from '../plan/builder.js';
import { parseFdinfo } from '../proc-text.js';
import type { FileRoom } from '../room.js';
import {
  corrupt,
  encodeOwner,
  hold,
  isAnonInode,
  kONonblock,
  kOReadWrite,
  setStatusFlags,
  u64s,
} from './file-common.js';

// The format has no place for EFD_SEMAPHORE. The access mode of an eventfd is
// always O_RDWR (2) and every reader ignores it, so bit 0 is free for it.
const kSemaphore = 1;

export const eventfdRoom: FileRoom = {
  kind: 'eventfd',
  fdType: fd_types.EVENTFD,
  claims: (file) => isAnonInode(file, 'eventfd'),
  encode(file, fileId, ctx) {
    const fdinfo = parseFdinfo(file.fdinfo);
    const count = fdinfo.get('eventfd-count')?.[0] ?? '0';
    const semaphore = fdinfo.get('eventfd-semaphore')?.[0] === '1';
    return {
      type: fd_types.EVENTFD,
      id: fileId,
      efd: {
        id: fileId,
        flags: file.statusFlags | kOReadWrite | (semaphore ? kSemaphore : 0),
        fown: encodeOwner(file, ctx),
        counter: BigInt(`0x${count}`),
      },
    };
  },
  compile(entry, ctx) {
    const event = entry.efd;
    if (event === undefined) throw corrupt('files.img', `has no eventfd in entry ${entry.id}`);
    const from = `file[${entry.id}]`;
    const task = ctx.root.builder;
    const low = ctx.plan.slot('eventfd');
    const flags = (event.flags & kONonblock) | (event.flags & kSemaphore);
    // The system call takes 32 bits; what is more is written.
    const small = event.counter <= 0xffffffffn;
    task.step(Phase.FILES, 'eventfd2', [small ? event.counter : 0, flags], {
      out: low,
      from,
      note: `count ${event.counter}`,
    });
    if (!small) task.step(Phase.FILES, 'write', [low, ctx.plan.blob(u64s(event.counter)), 8], { expected: 8, from });
    if ((event.flags & ~kONonblock & 0o20000) !== 0) setStatusFlags(task, Phase.FILES, low, event.flags, from);
    return hold(ctx, low, `eventfd ${entry.id}`, from);
  },
};
