// signalfd: the mask from fdinfo. It is bound to the reading task, not to the
// one that made it, so it is made once and inherited.
import { fd_types } from '../../../oci-spec/images/messages.js';
import { Phase } from '../plan/builder.js';
import { parseFdinfo } from '../proc-text.js';
import type { FileRoom } from '../room.js';
import { corrupt, encodeOwner, hold, isAnonInode, kONonblock, u64s } from './file-common.js';

export const signalfdRoom: FileRoom = {
  kind: 'signalfd',
  fdType: fd_types.SIGNALFD,
  claims: (file) => isAnonInode(file, 'signalfd'),
  encode(file, fileId, ctx) {
    const mask = parseFdinfo(file.fdinfo).get('sigmask')?.[0] ?? '0';
    return {
      type: fd_types.SIGNALFD,
      id: fileId,
      sgfd: { id: fileId, flags: file.statusFlags, fown: encodeOwner(file, ctx), sigmask: BigInt(`0x${mask}`) },
    };
  },
  compile(entry, ctx) {
    const signal = entry.sgfd;
    if (signal === undefined) throw corrupt('files.img', `has no signalfd in entry ${entry.id}`);
    const from = `file[${entry.id}]`;
    const low = ctx.plan.slot('signalfd');
    ctx.root.builder.step(
      Phase.FILES,
      'signalfd4',
      [-1, ctx.plan.blob(u64s(signal.sigmask)), 8, signal.flags & kONonblock],
      { out: low, from, note: `mask 0x${signal.sigmask.toString(16)}` },
    );
    return hold(ctx, low, `signalfd ${entry.id}`, from);
  },
};
