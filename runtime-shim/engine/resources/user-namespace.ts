// User namespace: the id maps in the images. On restore the maps come from the
// restoring side's spec and are written by the coordinator; the root task only
// becomes root inside.
import type { Task } from '../../../nativecore/schema/messages.js';
import type { userns_entry } from '../../../oci-spec/images/messages.js';
import type { EncodeContext } from '../encode-context.js';
import { Phase } from '../plan/builder.js';
import type { Room } from '../room.js';
import { createsNamespace, namespaceOf } from './namespaces.js';

interface IdRange {
  readonly inside: number;
  readonly outside: number;
  readonly count: number;
}

const parsed = new WeakMap<Task, { readonly uid: readonly IdRange[]; readonly gid: readonly IdRange[] }>();

function mapsOf(task: Task): { readonly uid: readonly IdRange[]; readonly gid: readonly IdRange[] } {
  let maps = parsed.get(task);
  if (maps === undefined) parsed.set(task, (maps = { uid: parseMap(task.uidMap), gid: parseMap(task.gidMap) }));
  return maps;
}

/** Lines of "inside outside count". */
function parseMap(text: Uint8Array): IdRange[] {
  return Buffer.from(text)
    .toString('latin1')
    .split('\n')
    .map((line) => line.trim().split(/\s+/).map(Number))
    .filter((fields) => fields.length === 3 && fields.every(Number.isSafeInteger))
    .map(([inside = 0, outside = 0, count = 0]) => ({ inside, outside, count }));
}

/** Images hold ids as the container sees them. */
export function insideUid(ctx: EncodeContext, uid: number): number {
  return inside(mapsOf(ctx.root.raw).uid, uid);
}
export function insideGid(ctx: EncodeContext, gid: number): number {
  return inside(mapsOf(ctx.root.raw).gid, gid);
}

const kOverflowId = 65534;

function inside(ranges: readonly IdRange[], id: number): number {
  if (ranges.length === 0) return id;
  const range = ranges.find(({ outside, count }) => id >= outside && id < outside + count);
  return range === undefined ? kOverflowId : id - range.outside + range.inside;
}

export const userNamespaceRoom: Room = {
  kind: 'user-namespace',

  encode(ctx) {
    const namespace = namespaceOf(ctx, 'user');
    if (namespace === undefined || namespace.own) return;
    const maps = mapsOf(ctx.root.raw);
    const extents = (ranges: readonly IdRange[]): userns_entry['uid_map'] =>
      ranges.map((range) => ({ first: range.inside, lower_first: range.outside, count: range.count }));
    ctx.images.add('userns', namespace.id, { uid_map: extents(maps.uid), gid_map: extents(maps.gid) });
  },

  compile(ctx) {
    if (!createsNamespace(ctx, 'user')) return;
    const task = ctx.root.builder;
    const from = 'userns';
    // The maps are written by now; until then all ids were the overflow ones.
    task.step(Phase.NAMESPACES, 'setresgid', [0, 0, 0], { from });
    task.step(Phase.NAMESPACES, 'setresuid', [0, 0, 0], { from });
  },
};
