// timerfd: clock, time left, interval and unread expirations from fdinfo. An
// absolute deadline comes back as the time that was left, as with every timer:
// the time spent in images does not count.
import { fd_types } from '../../../oci-spec/images/messages.js';
import { Phase } from '../plan/builder.js';
import { parseFdinfo } from '../proc-text.js';
import type { FileRoom } from '../room.js';
import { corrupt, encodeOwner, hold, isAnonInode, kONonblock, u64s } from './file-common.js';

// _IOW('T', 0, __u64), linux/timerfd.h
const kSetTicks = 0x40085400;

export const timerfdRoom: FileRoom = {
  kind: 'timerfd',
  fdType: fd_types.TIMERFD,
  claims: (file) => isAnonInode(file, 'timerfd'),
  encode(file, fileId, ctx) {
    const fdinfo = parseFdinfo(file.fdinfo);
    const first = (key: string): string => fdinfo.get(key)?.[0] ?? '0';
    const [vsec, vnsec] = pair(first('it_value'));
    const [isec, insec] = pair(first('it_interval'));
    return {
      type: fd_types.TIMERFD,
      id: fileId,
      tfd: {
        id: fileId,
        flags: file.statusFlags,
        fown: encodeOwner(file, ctx),
        clockid: Number(first('clockid')),
        ticks: BigInt(first('ticks')),
        settime_flags: Number.parseInt(first('settime flags'), 8),
        vsec,
        vnsec,
        isec,
        insec,
      },
    };
  },
  compile(entry, ctx) {
    const timer = entry.tfd;
    if (timer === undefined) throw corrupt('files.img', `has no timerfd in entry ${entry.id}`);
    const from = `file[${entry.id}]`;
    const task = ctx.root.builder;
    const low = ctx.plan.slot('timerfd');
    task.step(Phase.FILES, 'timerfd_create', [timer.clockid, timer.flags & kONonblock], { out: low, from });
    const armed = timer.vsec !== 0n || timer.vnsec !== 0n;
    if (armed) {
      const value = ctx.plan.blob(u64s(timer.isec, timer.insec, timer.vsec, timer.vnsec));
      task.step(Phase.FILES, 'timerfd_settime', [low, 0, value, 0], {
        from,
        note: `${timer.vsec}.${String(timer.vnsec).padStart(9, '0')} s left`,
      });
    }
    // After settime, which clears them.
    if (timer.ticks !== 0n)
      task.step(Phase.FILES, 'ioctl', [low, kSetTicks, ctx.plan.blob(u64s(timer.ticks))], {
        from,
        note: 'TFD_IOC_SET_TICKS',
      });
    return hold(ctx, low, `timerfd ${entry.id}`, from);
  },
};

/** "(3, 141592653)" */
function pair(text: string): [bigint, bigint] {
  const match = /^\((\d+), (\d+)\)$/.exec(text);
  return [BigInt(match?.[1] ?? 0), BigInt(match?.[2] ?? 0)];
}
