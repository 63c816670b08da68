// UTS namespace: host name and NIS domain name.
import { Phase } from '../plan/builder.js';
import type { Room } from '../room.js';
import { createsNamespace, imageNamespaceId, namespaceOf } from './namespaces.js';

/** __NEW_UTS_LEN */
const kMaxNameBytes = 64;

export const utsNamespaceRoom: Room = {
  kind: 'uts-namespace',

  encode(ctx) {
    const namespace = namespaceOf(ctx, 'uts');
    if (namespace === undefined || namespace.own) return;
    const content = ctx.capture.utsNamespaces.find(({ inode }) => inode === namespace.inode);
    const text = (bytes: Uint8Array | undefined): string =>
      Buffer.from(bytes ?? [])
        .toString('utf8')
        .replace(/\0.*$/s, '');
    ctx.images.add('utsns', namespace.id, { nodename: text(content?.nodename), domainname: text(content?.domainname) });
  },

  compile(ctx) {
    const id = imageNamespaceId(ctx, 'uts');
    if (id === undefined || !createsNamespace(ctx, 'uts')) return;
    const names = ctx.images.set.maybe('utsns', id);
    if (names === undefined) return;
    const task = ctx.root.builder;
    const from = `utsns-${id}`;
    for (const [op, name] of [
      ['sethostname', names.nodename],
      ['setdomainname', names.domainname],
    ] as const) {
      const bytes = Buffer.from(name, 'utf8').subarray(0, kMaxNameBytes);
      task.step(Phase.NAMESPACES, op, [ctx.plan.blob(bytes), bytes.length], { from, note: name });
    }
  },
};
