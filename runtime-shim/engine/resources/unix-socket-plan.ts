// Unix sockets of the images as steps, all at once, since one's steps stand on
// another's: names first, then pairs and connections, then what is queued,
// then what would be in the way of all that (small buffers, shutdown).
import type { ImageEntry } from '../../../oci-spec/images/image-file.js';
import type { unix_sk_entry } from '../../../oci-spec/images/messages.js';
import type { CompileContext } from '../compile-context.js';
import { Phase, type SlotRef } from '../plan/builder.js';
import { corrupt, hold, kAtFdCwd, kOCloexec, setStatusFlags } from './file-common.js';
import { compileOptionsBeforeBind, compileSocketOptions, enlargeSendBuffer } from './socket-options.js';

const kUnix = 1;
const kStream = 1;
const kDatagram = 2;
const kSeqpacket = 5;
const kEstablished = 1;
const kListen = 10;
const kMsgDontwait = 0x40;
const kMsgNosignal = 0x4000;
const kEnoent = 2;
const kMaxNameBytes = 108;

interface Prepared {
  readonly entry: unix_sk_entry;
  readonly from: string;
  slot: SlotRef | undefined;
}

const prepared = new WeakMap<CompileContext, ReadonlyMap<number, SlotRef>>();

/** The held descriptor of every unix socket of the images, by file id. */
export function preparedSockets(ctx: CompileContext): ReadonlyMap<number, SlotRef> {
  let slots = prepared.get(ctx);
  if (slots === undefined) prepared.set(ctx, (slots = new SocketCompiler(ctx).compile()));
  return slots;
}

class SocketCompiler {
  readonly #sockets: Prepared[] = [];
  readonly #byInode = new Map<number, Prepared>();
  readonly #queues = new Map<number, Uint8Array[]>();

  constructor(readonly ctx: CompileContext) {
    for (const [id, file] of ctx.images.files) {
      const entry = file.usk;
      if (entry === undefined) continue;
      checkEntry(entry, id);
      const socket = { entry, from: `file[${id}]`, slot: undefined };
      this.#sockets.push(socket);
      this.#byInode.set(entry.ino, socket);
    }
    // Of several that were bound to one path, the last to bind has it.
    this.#sockets.sort((a, b) => Number(b.entry.deleted === true) - Number(a.entry.deleted === true));
    const packets: readonly ImageEntry<'sk_packet_entry'>[] = ctx.images.set.entries('sk-queues');
    for (const packet of packets) {
      if (packet.message.scm.length > 0)
        ctx.object(
          'IMAGE_FEATURE_UNSUPPORTED',
          `the queue of socket file ${packet.message.id_for} holds descriptors, which are not carried`,
          { image: 'sk-queues.img' },
        );
      const queue = this.#queues.get(packet.message.id_for);
      if (queue === undefined) this.#queues.set(packet.message.id_for, [packet.payload]);
      else queue.push(packet.payload);
    }
  }

  compile(): ReadonlyMap<number, SlotRef> {
    // Named ones first: connections are made by their names.
    for (const socket of this.#sockets) if (socket.entry.state === kListen) this.#listen(socket);
    for (const socket of this.#sockets)
      if (socket.slot === undefined && socket.entry.type === kDatagram && !this.#isPair(socket))
        this.#bindDatagram(socket);
    for (const socket of this.#sockets) if (socket.slot === undefined) this.#connect(socket);
    for (const socket of this.#sockets) this.#connectDatagram(socket);
    // Queues before shutdown and before small buffers: both would refuse the bytes.
    for (const socket of this.#sockets) this.#fillQueue(socket);
    const held = new Map<number, SlotRef>();
    for (const socket of this.#sockets) {
      const { entry, from, slot } = socket;
      if (entry.deleted === true && !this.#isBoundLater(entry)) this.#removeName(entry, from);
      if (slot === undefined) continue;
      compileSocketOptions(this.ctx, slot, entry.opts, from);
      const shutdown = entry.shutdown ?? 0;
      // sk_shutdown counts 1 read, 2 write, 3 both; shutdown(2) counts from 0.
      if (shutdown !== 0 && entry.state === kEstablished) this.#step('shutdown', [slot, shutdown - 1], from);
      setStatusFlags(this.ctx.root.builder, Phase.FILES, slot, entry.flags, from);
      held.set(entry.id, hold(this.ctx, slot, `unix socket ${entry.id}`, from));
    }
    return held;
  }

  #step(
    op: string,
    args: Parameters<CompileContext['root']['builder']['step']>[2],
    from: string,
    more: object = {},
  ): void {
    this.ctx.root.builder.step(Phase.FILES, op, args, { from, ...more });
  }

  #socket(type: number, name: string, from: string): SlotRef {
    const slot = this.ctx.plan.slot(name);
    this.#step('socket', [kUnix, type | kOCloexec, 0], from, { out: slot });
    return slot;
  }

  #listen(socket: Prepared): void {
    const { entry, from } = socket;
    socket.slot = this.#socket(entry.type, `unix socket ${entry.id}, low`, from);
    compileOptionsBeforeBind(this.ctx, socket.slot, entry.opts, from);
    this.#bind(socket.slot, entry, from);
    this.#step('listen', [socket.slot, entry.backlog], from, { note: `backlog ${entry.backlog}` });
  }

  #bindDatagram(socket: Prepared): void {
    const { entry, from } = socket;
    socket.slot = this.#socket(entry.type, `unix socket ${entry.id}, low`, from);
    compileOptionsBeforeBind(this.ctx, socket.slot, entry.opts, from);
    if (entry.name.length > 0) this.#bind(socket.slot, entry, from);
  }

  /** The path is resolved in the root task, which is inside the container's root already. */
  #bind(slot: SlotRef, entry: unix_sk_entry, from: string): void {
    const name = Buffer.from(entry.name);
    const address = unixAddress(name);
    const isPath = name[0] !== 0;
    if (isPath) {
      if (entry.name_dir !== undefined) this.#step('chdir', [this.ctx.plan.text(entry.name_dir)], from);
      // The node that the checkpoint left behind: nobody listens on it. Where the path was something else by then, it stays.
      if (entry.deleted !== true || this.#isBoundLater(entry))
        this.#step('unlinkat', [kAtFdCwd, this.ctx.plan.text(name), 0], from, { tolerate: [kEnoent] });
    }
    this.#step('bind', [slot, this.ctx.plan.blob(address), address.length], from, { note: printableName(name) });
    if (isPath) {
      // The umask is 0: without a mode in the images the node must not be open to all.
      const perms = entry.file_perms ?? { mode: 0o755, uid: 0, gid: 0 };
      if (perms.uid !== 0 || perms.gid !== 0)
        this.#step('fchownat', [kAtFdCwd, this.ctx.plan.text(name), perms.uid, perms.gid, 0], from);
      this.#step('fchmodat', [kAtFdCwd, this.ctx.plan.text(name), perms.mode & 0o7777], from);
    }
    if (isPath && entry.name_dir !== undefined) this.#step('chdir', [this.ctx.plan.text('/')], from);
  }

  #isBoundLater(entry: unix_sk_entry): boolean {
    return this.#sockets.some(
      ({ entry: other }) =>
        other !== entry &&
        other.deleted !== true &&
        (other.state === kListen || other.type === kDatagram) &&
        other.name_dir === entry.name_dir &&
        Buffer.from(other.name).equals(Buffer.from(entry.name)),
    );
  }

  /** Of a name that was gone already, once everybody has connected by it. */
  #removeName(entry: unix_sk_entry, from: string): void {
    const name = Buffer.from(entry.name);
    if (name.length === 0 || name[0] === 0) return;
    const path = entry.name_dir === undefined ? name : Buffer.concat([Buffer.from(`${entry.name_dir}/`), name]);
    this.#step('unlinkat', [kAtFdCwd, this.ctx.plan.text(path), 0], from, { note: 'its path was gone' });
  }

  /** By the name that the peer was bound to, from the directory that it was bound in. */
  #connectTo(slot: SlotRef, peer: unix_sk_entry, from: string): void {
    const name = Buffer.from(peer.name);
    const address = unixAddress(name);
    const relative = name[0] !== 0 && peer.name_dir !== undefined ? peer.name_dir : undefined;
    if (relative !== undefined) this.#step('chdir', [this.ctx.plan.text(relative)], from);
    this.#step('connect', [slot, this.ctx.plan.blob(address), address.length], from, { note: printableName(name) });
    if (relative !== undefined) this.#step('chdir', [this.ctx.plan.text('/')], from);
  }

  #peer(socket: Prepared): Prepared | undefined {
    return socket.entry.peer === 0 ? undefined : this.#byInode.get(socket.entry.peer);
  }

  #isPair(socket: Prepared): boolean {
    const peer = this.#peer(socket);
    return (
      peer !== undefined &&
      peer !== socket &&
      peer.entry.peer === socket.entry.ino &&
      socket.entry.name.length === 0 &&
      peer.entry.name.length === 0
    );
  }

  /** Streams, sequenced packets and datagram pairs. */
  #connect(socket: Prepared): void {
    const { entry, from } = socket;
    const peer = this.#peer(socket);
    if (peer === undefined) {
      if (entry.state === kEstablished || (entry.shutdown ?? 0) !== 0 || this.#queues.has(entry.id)) {
        this.#orphan(socket);
        return;
      }
      socket.slot = this.#socket(entry.type, `unix socket ${entry.id}, low`, from);
      compileOptionsBeforeBind(this.ctx, socket.slot, entry.opts, from);
      if (entry.name.length > 0) this.#bind(socket.slot, entry, from);
      return;
    }
    if (peer.slot !== undefined || peer === socket)
      throw corrupt('files.img', `gives socket ${entry.id} a peer that is connected to another`);
    if (entry.name.length === 0 && peer.entry.name.length === 0) {
      [socket.slot, peer.slot] = this.#pair(entry.type, entry.id, from);
      return;
    }
    this.#connectByName(socket, peer);
  }

  #pair(type: number, id: number, from: string): [SlotRef, SlotRef] {
    const ends = this.ctx.plan.blob(new Uint8Array(0), [], 8);
    const first = this.ctx.plan.slot(`unix socket ${id}, low`);
    const second = this.ctx.plan.slot(`unix socket, peer of ${id}, low`);
    this.#step('socketpair', [kUnix, type | kOCloexec, 0, ends], from);
    this.#step('load', [ends, 0, 4], from, { out: first });
    this.#step('load', [ends, 4, 4], from, { out: second });
    return [first, second];
  }

  /** The peer has gone: what it sent before may be unread still. */
  #orphan(socket: Prepared): void {
    const { entry, from } = socket;
    const [own, other] = this.#pair(entry.type, entry.id, from);
    socket.slot = own;
    this.#send(other, this.#queues.get(entry.id) ?? [], entry.type, from);
    this.#queues.delete(entry.id);
    this.#step('close', [other], from, { note: 'the peer has gone' });
  }

  /**
   * An accepted socket has its listener's name, and only accept gives it one:
   * the client connects again, to the listener itself or to a stand-in for it.
   */
  #connectByName(socket: Prepared, peer: Prepared): void {
    const [server, client] =
      socket.entry.name.length > 0 && this.#listenerOf(socket) !== undefined
        ? [socket, peer]
        : peer.entry.name.length > 0
          ? [peer, socket]
          : [socket, peer];
    const { from } = server;
    const name = Buffer.from(server.entry.name);
    let listener = this.#listenerOf(server)?.slot;
    const standIn = listener === undefined;
    if (listener === undefined) {
      if (name[0] !== 0) {
        // A path that nobody listens on: a node for it must not appear, the name is lost.
        this.ctx.degrade(
          'UNIX_NAME_LOST',
          `socket file ${server.entry.id} was accepted on "${printableName(name)}", whose listener is gone; it is restored without that name`,
          { image: 'files.img' },
        );
        [server.slot, client.slot] = this.#pair(server.entry.type, server.entry.id, from);
        return;
      }
      listener = this.#socket(server.entry.type, 'stand-in for a listener', from);
      this.#bind(listener, server.entry, from);
      this.#step('listen', [listener, 1], from);
    }
    client.slot = this.#socket(client.entry.type, `unix socket ${client.entry.id}, low`, client.from);
    if (client.entry.name.length > 0) this.#bind(client.slot, client.entry, client.from);
    this.#connectTo(client.slot, server.entry, client.from);
    server.slot = this.ctx.plan.slot(`unix socket ${server.entry.id}, low`);
    this.#step('accept4', [listener, 0, 0, kOCloexec], from, { out: server.slot });
    if (standIn) this.#step('close', [listener], from);
  }

  #listenerOf(socket: Prepared): Prepared | undefined {
    const name = Buffer.from(socket.entry.name);
    return this.#sockets.findLast(
      ({ entry }) =>
        entry.state === kListen && entry.type === socket.entry.type && name.equals(Buffer.from(entry.name)),
    );
  }

  #connectDatagram(socket: Prepared): void {
    const { entry, from, slot } = socket;
    if (entry.type !== kDatagram || slot === undefined || this.#isPair(socket)) return;
    const peer = this.#peer(socket);
    if (peer === undefined) return;
    if (peer.entry.name.length === 0) {
      this.ctx.object(
        'IMAGE_FEATURE_UNSUPPORTED',
        `datagram socket file ${entry.id} is connected to socket file ${peer.entry.id}, which has no name to connect to`,
        { image: 'files.img' },
      );
      return;
    }
    this.#connectTo(slot, peer.entry, from);
  }

  #fillQueue(socket: Prepared): void {
    const { entry, from, slot } = socket;
    const queue = this.#queues.get(entry.id);
    if (queue === undefined || slot === undefined) return;
    const peer = this.#peer(socket);
    if (peer?.slot !== undefined && (entry.type !== kDatagram || peer.entry.peer === entry.ino)) {
      this.#send(peer.slot, queue, entry.type, from);
      return;
    }
    if (entry.type !== kDatagram || entry.name.length === 0)
      throw corrupt('sk-queues.img', `fills the queue of socket ${entry.id}, which nobody can send to`);
    const sender = this.#socket(kDatagram, 'sender of queued datagrams', from);
    this.#connectTo(sender, entry, from);
    this.#send(sender, queue, entry.type, from);
    this.#step('close', [sender], from);
  }

  #send(sender: SlotRef, queue: readonly Uint8Array[], type: number, from: string): void {
    if (queue.length === 0) return;
    // A message costs its skb as well; the kernel charges truesize against the sender's buffer.
    const bytes = queue.reduce((sum, message) => sum + 2 * message.length + 4096, 65536);
    enlargeSendBuffer(this.ctx, sender, bytes, from);
    for (const message of queue) {
      if (message.length === 0 && type === kStream) continue;
      this.#step(
        'sendto',
        [sender, this.ctx.plan.blob(message), message.length, kMsgDontwait | kMsgNosignal, 0, 0],
        from,
        {
          expected: message.length,
          note: 'queued',
        },
      );
    }
  }
}

function checkEntry(entry: unix_sk_entry, id: number): void {
  const type = entry.type === kStream || entry.type === kDatagram || entry.type === kSeqpacket;
  if (!type || entry.name.length > kMaxNameBytes || (entry.state === kListen && entry.name.length === 0))
    throw corrupt('files.img', `has an impossible unix socket in entry ${id}`);
}

/** struct sockaddr_un; a path is followed by its NUL where there is room. */
function unixAddress(name: Buffer): Buffer {
  const isPath = name.length > 0 && name[0] !== 0;
  const family = Buffer.from([kUnix, 0]);
  return Buffer.concat(isPath && name.length < kMaxNameBytes ? [family, name, Buffer.from([0])] : [family, name]);
}

export function printableName(name: Uint8Array): string {
  return Buffer.from(name).toString('utf8').replace(/\0/g, '@');
}
