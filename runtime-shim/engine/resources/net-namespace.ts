// Network namespace: joined where the restoring side provides it, else new,
// with its loopback. Every other interface of an own namespace is refused.
import { nd_type, type net_device_entry } from '../../../oci-spec/images/messages.js';
import type { EncodeContext } from '../encode-context.js';
import { Phase } from '../plan/builder.js';
import type { Room } from '../room.js';
import { kOCloexec } from './file-common.js';
import { cloneFlagOf, createsNamespace, imageNamespaceId, namespaceOf } from './namespaces.js';

// struct ifinfomsg {u8 family, pad; u16 type; i32 index; u32 flags, change} and attributes
const kIfInfoBytes = 16;
const kIflaIfname = 3;
const kIflaMtu = 4;
const kIffUp = 1;
const kIffLoopback = 8;
const kInet = 2;
const kDatagram = 2;
const kSiocSetFlags = 0x8914;
/** Plan.network_descriptor: that of whoever restores. */
const kOwnNetwork = -1;

interface Link {
  readonly index: number;
  readonly flags: number;
  readonly name: string;
  readonly mtu: number;
}

function parseLink(payload: Uint8Array): Link | undefined {
  const bytes = Buffer.from(payload);
  if (bytes.length < kIfInfoBytes) return undefined;
  let name = '';
  let mtu = 0;
  for (let at = kIfInfoBytes; at + 4 <= bytes.length;) {
    const length = bytes.readUInt16LE(at);
    if (length < 4 || at + length > bytes.length) break;
    const type = bytes.readUInt16LE(at + 2);
    if (type === kIflaIfname) name = bytes.toString('utf8', at + 4, at + length).replace(/\0.*$/s, '');
    if (type === kIflaMtu && length >= 8) mtu = bytes.readUInt32LE(at + 4);
    at += (length + 3) & ~3;
  }
  return { index: bytes.readInt32LE(4), flags: bytes.readUInt32LE(8), name, mtu };
}

export const netNamespaceRoom: Room = {
  kind: 'net-namespace',

  encode(ctx) {
    const namespace = namespaceOf(ctx, 'net');
    if (namespace === undefined || namespace.own) return;
    if (namespace.externalKey !== undefined) {
      ctx.images.add('netns', namespace.id, { ...emptyNetns, ext_key: namespace.externalKey });
      return;
    }
    if (ctx.options.emptyNetNamespace) return;
    ctx.images.add('netns', namespace.id, emptyNetns);
    for (const link of linksOf(ctx, namespace.inode)) encodeLink(link, namespace.id, ctx);
  },

  compile(ctx) {
    if (!createsNamespace(ctx, 'net')) {
      ctx.plan.networkDescriptor = ctx.options.joinNamespaces.get('net') ?? kOwnNetwork;
      return;
    }
    const task = ctx.root.builder;
    const id = imageNamespaceId(ctx, 'net');
    const from = `netns-${id ?? 'new'}`;
    // Not at clone: other namespaces decide who owns this one.
    task.step(Phase.NAMESPACES, 'unshare', [cloneFlagOf.net], { from, note: 'net' });
    const links: readonly net_device_entry[] = id === undefined ? [] : ctx.images.set.messages('netdev', id);
    for (const link of links) {
      if (link.type === nd_type.LOOPBACK || ctx.options.emptyNetNamespace) continue;
      ctx.object('IMAGE_FEATURE_UNSUPPORTED', `network interface "${link.name}" is not carried`, {
        image: `netdev-${id ?? 0}.img`,
      });
    }
    const loopback = links.find((link) => link.type === nd_type.LOOPBACK);
    if (loopback !== undefined && (loopback.flags & kIffUp) === 0) return;
    // struct ifreq: name[16], flags u16; the kernel gives lo its addresses when it comes up
    const request = Buffer.alloc(40);
    request.write('lo', 0, 'latin1');
    request.writeUInt16LE(kIffUp | kIffLoopback, 16);
    const socket = ctx.plan.slot('socket to configure lo');
    task.step(Phase.NAMESPACES, 'socket', [kInet, kDatagram | kOCloexec, 0], { out: socket, from });
    task.step(Phase.NAMESPACES, 'ioctl', [socket, kSiocSetFlags, ctx.plan.blob(request)], { from, note: 'lo up' });
    task.step(Phase.NAMESPACES, 'close', [socket], { from });
  },
};

const emptyNetns = {
  def_conf: [],
  all_conf: [],
  def_conf4: [],
  all_conf4: [],
  def_conf6: [],
  all_conf6: [],
  nsids: [],
  unix_conf: [],
  ipv4_sysctl: [],
};

function linksOf(ctx: EncodeContext, inode: bigint): Link[] {
  const namespace = ctx.capture.netNamespaces.find((candidate) => candidate.inode === inode);
  return (namespace?.links ?? []).map(parseLink).filter((link) => link !== undefined);
}

/** Tunnel devices that the kernel puts into every namespace when their module is loaded; down and unused. */
const fallbackDevices = new Set([
  'tunl0',
  'gre0',
  'gretap0',
  'erspan0',
  'ip_vti0',
  'ip6_vti0',
  'sit0',
  'ip6tnl0',
  'ip6gre0',
]);

function encodeLink(link: Link, id: number, ctx: EncodeContext): void {
  if ((link.flags & kIffLoopback) !== 0) {
    ctx.images.add('netdev', id, {
      type: nd_type.LOOPBACK,
      ifindex: link.index,
      mtu: link.mtu,
      flags: link.flags,
      name: link.name,
      conf: [],
      conf4: [],
      conf6: [],
    });
    return;
  }
  if (fallbackDevices.has(link.name) && (link.flags & kIffUp) === 0) return;
  ctx.object(
    'CAPTURE_NAMESPACE_UNSUPPORTED',
    `the container's own network namespace has the interface "${link.name}", which is not carried`,
    { ...ctx.subjectOfTask(ctx.root), path: link.name },
    'have the namespace set up outside and joined by path, or let the restoring side fill it (--empty-ns network)',
  );
}
