// TCP connections, both directions: what repair mode told of one becomes a
// tcp-stream image, and that the calls which make it again. The socket itself
// is the business of inet-socket.
import type { Connection, OpenFile, Socket, SocketCall } from '../../../nativecore/schema/messages.js';
import type { inet_sk_entry, tcp_stream_entry } from '../../../oci-spec/images/messages.js';
import type { CompileContext } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import { corrupt, descriptorPhrase, u32 } from './file-common.js';
import { packetFromPeer } from './tcp-packet.js';
import { addressText, inetAddressOf, socketAddress } from './inet-address.js';
import {
  kReuseAddr,
  kSolSocket,
  kSolTcp,
  lastBufferSizes,
  optionBytes,
  kReceiveBufferForce,
  kSendBufferForce,
} from './socket-options.js';

// include/net/tcp_states.h
export const tcpState = {
  established: 1,
  synSent: 2,
  synReceived: 3,
  finWait1: 4,
  finWait2: 5,
  closed: 7,
  closeWait: 8,
  lastAck: 9,
  listen: 10,
  closing: 11,
} as const;

const stateNames: Readonly<Record<number, string>> = {
  1: 'established',
  2: 'connecting',
  3: 'accepting',
  4: 'closing',
  5: 'closing',
  6: 'closing',
  8: 'half closed by its peer',
  9: 'closing',
  11: 'closing',
};

/** Our FIN has been sent, or waits to be: it takes a sequence number. */
const ownFin: ReadonlySet<number> = new Set([tcpState.finWait1, tcpState.finWait2, tcpState.lastAck, tcpState.closing]);
const peerFin: ReadonlySet<number> = new Set([tcpState.closeWait, tcpState.lastAck, tcpState.closing]);

// linux/tcp.h
const kNodelay = 1;
const kCork = 3;
const kRepair = 19;
const kRepairQueue = 20;
const kQueueSequence = 21;
const kRepairOptions = 22;
const kTimestamp = 24;
const kRepairWindow = 29;
/** TCP_ULP: the name of what was put over TCP in the kernel, such as "tls" */
const kUpperLayer = 31;
const kNoQueue = 0;
const kReceiveQueue = 1;
const kSendQueue = 2;
const kOptTimestamps = 1;
const kOptSack = 2;
const kOptWindowScale = 4;
const kMaximalWindowScale = 14;
// TCP options (RFC 9293, 7323, 2018), as TCP_REPAIR_OPTIONS numbers them
const kMss = 2;
const kWindowScale = 3;
const kSackPermitted = 4;
const kTimestamps = 8;
const kShutdownWrite = 1;
const kWindowBytes = 20;
/** inventory_entry.network_lock_method */
const kNftablesLock = 1;
const kLockNameLength = 26;

const Call = { SETSOCKOPT: 0, BIND: 1, CONNECT: 2, SEND: 3, SHUTDOWN: 4, SEND_RAW: 5, AWAIT_PEER_END: 6 } as const;

export function isConnectionState(state: number): boolean {
  return state !== tcpState.closed && state !== tcpState.listen;
}

/**
 * Writes the tcp-stream image of a socket that is a connection. False: it is
 * not carried, and that has been objected.
 */
export function encodeConnection(file: OpenFile, socket: Socket, isk: inet_sk_entry, ctx: EncodeContext): boolean {
  const { connection } = socket;
  const about = `is a TCP connection (${stateNames[isk.state] ?? `state ${isk.state}`}) from ${textOf(socket)}`;
  const object = (reason: string, hint?: string): false => {
    ctx.object(
      'CAPTURE_FD_UNSUPPORTED',
      `${descriptorPhrase(file, ctx)} ${about}${reason}`,
      ctx.subjectOfFile(file),
      hint,
    );
    return false;
  };
  if (isk.state === tcpState.synSent || isk.state === tcpState.synReceived)
    return object(', which has not been answered yet', 'try again when it has been');
  if (ctx.options.tcp === 'close') {
    ctx.inventory.tcp_close = true;
    return true;
  }
  const layer = optionBytes(socket, kSolTcp, kUpperLayer)?.toString('latin1').replace(/\0.*$/s, '') ?? '';
  if (layer !== '')
    return object(`, which the kernel itself speaks "${layer}" over; its keys and records are not carried`);
  if (connection === undefined)
    return object(
      ', whose other end is not in the container',
      'give --tcp-established, or the annotation org.stasis.tcp (established, or close), or close the connection',
    );
  if (connection.window.length < kWindowBytes)
    return object(', whose window the kernel does not tell (TCP_REPAIR_WINDOW)');
  const info = Buffer.from(socket.tcpInfo);
  const window = Buffer.from(connection.window);
  const scales = info[6] ?? 0;
  const stream: tcp_stream_entry = {
    inq_len: connection.receiveQueue.length,
    inq_seq: connection.receiveSequence,
    outq_len: connection.sendQueue.length,
    outq_seq: connection.sendSequence,
    opt_mask: info[5] ?? 0,
    // struct tcp_info: two fields of four bits
    snd_wscale: scales & 0xf,
    rcv_wscale: scales >> 4,
    mss_clamp: connection.mssClamp,
    timestamp: connection.timestamp,
    cork: isk.tcp_opts?.cork,
    nodelay: isk.tcp_opts?.nodelay,
    unsq_len: Math.min(connection.unsentBytes, connection.sendQueue.length),
    snd_wl1: window.readUInt32LE(0),
    snd_wnd: window.readUInt32LE(4),
    max_window: window.readUInt32LE(8),
    rcv_wnd: window.readUInt32LE(12),
    rcv_wup: window.readUInt32LE(16),
  };
  ctx.images.add(
    'tcp-stream',
    isk.ino.toString(16),
    stream,
    Buffer.concat([connection.receiveQueue, connection.sendQueue]),
  );
  if (ctx.options.connectionLock !== '') {
    ctx.inventory.network_lock_method = kNftablesLock;
    ctx.inventory.dump_criu_run_id = ctx.options.connectionLock;
  }
  return true;
}

/**
 * Adds the connection to the plan. Preconditions: the entry is one of a
 * connection, its addresses have been checked, and somebody has it open.
 */
export function compileConnection(socket: inet_sk_entry, id: number, ctx: CompileContext): void {
  const image = `tcp-stream-${socket.ino.toString(16)}.img`;
  const entry = ctx.images.set.entries('tcp-stream', socket.ino.toString(16))[0];
  const connection = `${addressText(socket.src_addr, socket.src_port)} to ${addressText(socket.dst_addr, socket.dst_port)}`;
  const object = (reason: string, hint?: string): void =>
    ctx.object(
      'IMAGE_FEATURE_UNSUPPORTED',
      `file ${id} is a TCP connection from ${connection}${reason}`,
      { image: 'files.img' },
      hint,
    );
  if (ctx.options.tcp !== 'established' && !isInside(socket, ctx)) {
    object(
      ', whose other end is not in the checkpoint',
      'give --tcp-established to take it over, or --tcp-close to give the program a closed one; for managers that pass neither there is the annotation org.stasis.tcp',
    );
    return;
  }
  if (entry === undefined) throw corrupt(image, 'is missing, and a connection is in it');
  const { state } = socket;
  if (state === tcpState.synSent || state === tcpState.synReceived) {
    object(', which was not answered yet at the checkpoint; that is not carried');
    return;
  }
  if (!(state === tcpState.established || ownFin.has(state) || peerFin.has(state)))
    throw corrupt('files.img', `has a TCP connection in state ${state} in entry ${id}`);
  const owner = ownerOf(id, ctx);
  if (owner === undefined) return;
  const stream = entry.message;
  const payload = Buffer.from(entry.payload ?? new Uint8Array(0));
  if (payload.length !== stream.inq_len + stream.outq_len)
    throw corrupt(image, 'does not hold the queues that it tells of');
  if (stream.snd_wscale > kMaximalWindowScale || (stream.rcv_wscale ?? 0) > kMaximalWindowScale)
    throw corrupt(image, 'has a window scale above 14');
  planConnection(socket, id, ctx, owner, callsOf(socket, stream, payload));
}

/** A connection that is not made again: its peer is no longer kept waiting, and will be told when it sends. */
export function forgetConnection(socket: inet_sk_entry, id: number, ctx: CompileContext): void {
  const owner = ownerOf(id, ctx);
  if (owner !== undefined && lockOf(ctx) !== '') planConnection(socket, id, ctx, owner, { calls: [], lastCalls: [] });
}

function planConnection(
  socket: inet_sk_entry,
  id: number,
  ctx: CompileContext,
  owner: Owner,
  calls: Pick<Connection, 'calls' | 'lastCalls'>,
): void {
  ctx.plan.connections.push({
    ...owner,
    ...calls,
    local: socketAddress(socket.family, socket.src_port, socket.src_addr),
    peer: socketAddress(socket.family, socket.dst_port, socket.dst_addr),
    lock: lockOf(ctx),
    from: `file[${id}]`,
  });
}

/**
 * The table that drops the packets of connections since the checkpoint; "":
 * there is none. Name and mark are CRIU's, so that each of us ends what the
 * other has begun.
 */
function lockOf(ctx: CompileContext): string {
  const { network_lock_method, dump_criu_run_id = '' } = ctx.images.inventory;
  if (network_lock_method !== kNftablesLock || dump_criu_run_id === '') return '';
  if (!/^[A-Za-z0-9-]{1,57}$/.test(dump_criu_run_id))
    throw corrupt('inventory.img', `has the run id ${JSON.stringify(dump_criu_run_id)}`);
  return connectionLockName(dump_criu_run_id);
}

/** `runId`: inventory_entry.dump_criu_run_id. CRIU 4.2 was seen to name its table with so much of it. */
export function connectionLockName(runId: string): string {
  return `CRIU-${runId}`.slice(0, kLockNameLength);
}

interface Owner {
  readonly task: number;
  readonly fd: number;
}

/** In the order in which the kernel wants them: sequence numbers only before connect, options only after it. */
function callsOf(
  socket: inet_sk_entry,
  stream: tcp_stream_entry,
  payload: Buffer,
): { readonly calls: SocketCall[]; readonly lastCalls: SocketCall[] } {
  const { state } = socket;
  const received = payload.subarray(0, stream.inq_len);
  const toSend = payload.subarray(stream.inq_len);
  // Behind unsent data our FIN cannot have gone either: then all of it counts as sent, and is sent again in time.
  const unsent = ownFin.has(state) ? 0 : Math.min(stream.unsq_len ?? 0, toSend.length);
  const sent = toSend.subarray(0, toSend.length - unsent);
  const receiveFrom = (stream.inq_seq - stream.inq_len - (peerFin.has(state) ? 1 : 0)) >>> 0;
  const sendFrom = (stream.outq_seq - stream.outq_len - (ownFin.has(state) ? 1 : 0)) >>> 0;
  const roomBytes = 2 * payload.length + 65536;
  const calls: SocketCall[] = [];
  const option = (name: number, value: Uint8Array, note: string): void =>
    void calls.push(optionCall(kSolTcp, name, value, note));
  const queue = (which: number, note: string): void => option(kRepairQueue, u32(which), `TCP_REPAIR_QUEUE ${note}`);
  option(kRepair, u32(1), 'TCP_REPAIR on');
  calls.push(optionCall(kSolSocket, kSendBufferForce, u32(roomBytes), 'room for the queues'));
  calls.push(optionCall(kSolSocket, kReceiveBufferForce, u32(roomBytes), 'room for the queues'));
  calls.push(plainCall(Call.BIND, 'bind'));
  queue(kReceiveQueue, 'receive');
  option(kQueueSequence, u32(receiveFrom), `TCP_QUEUE_SEQ ${receiveFrom}`);
  queue(kSendQueue, 'send');
  option(kQueueSequence, u32(sendFrom), `TCP_QUEUE_SEQ ${sendFrom}`);
  calls.push(plainCall(Call.CONNECT, 'connect, which sends nothing in repair mode'));
  option(kRepairOptions, repairOptions(stream), 'TCP_REPAIR_OPTIONS');
  if ((stream.opt_mask & kOptTimestamps) !== 0 && stream.timestamp !== undefined)
    option(kTimestamp, u32(stream.timestamp), 'TCP_TIMESTAMP');
  if (received.length > 0) {
    queue(kReceiveQueue, 'receive');
    calls.push(sendCall(received, `${received.length} bytes that were not read`));
  }
  if (sent.length > 0) {
    queue(kSendQueue, 'send');
    calls.push(sendCall(sent, `${sent.length} bytes that were not acknowledged`));
  }
  calls.push(...endCalls(socket, stream, sendFrom, receiveFrom));
  if (stream.rcv_wnd !== undefined)
    option(
      kRepairWindow,
      Buffer.concat([
        u32(stream.snd_wl1 ?? 0),
        u32(stream.snd_wnd ?? 0),
        u32(Math.max(stream.max_window ?? 0, stream.snd_wnd ?? 0)),
        u32(stream.rcv_wnd),
        u32(stream.rcv_wup ?? 0),
      ]),
      'TCP_REPAIR_WINDOW',
    );
  queue(kNoQueue, 'none');

  const lastCalls: SocketCall[] = [optionCall(kSolTcp, kRepair, u32(0), 'TCP_REPAIR off')];
  // Switching repair mode off takes it away.
  if (socket.opts.reuseaddr === true) lastCalls.push(optionCall(kSolSocket, kReuseAddr, u32(1), 'SO_REUSEADDR'));
  const nodelay = socket.tcp_opts?.nodelay ?? stream.nodelay;
  const cork = socket.tcp_opts?.cork ?? stream.cork;
  if (nodelay === true) lastCalls.push(optionCall(kSolTcp, kNodelay, u32(1), 'TCP_NODELAY'));
  if (cork === true) lastCalls.push(optionCall(kSolTcp, kCork, u32(1), 'TCP_CORK'));
  if (unsent > 0) lastCalls.push(sendCall(toSend.subarray(sent.length), `${unsent} bytes that were not sent`));
  for (const { name, value, note } of lastBufferSizes(socket.opts))
    lastCalls.push(optionCall(kSolSocket, name, value, note));
  return { calls, lastCalls };
}

/**
 * Ends of the two directions. Ours is a shutdown; the peer's, and its
 * acknowledgement of ours, can only come in a packet.
 */
function endCalls(
  socket: inet_sk_entry,
  stream: tcp_stream_entry,
  sendFrom: number,
  receiveFrom: number,
): SocketCall[] {
  const { state } = socket;
  const receiveNext = (receiveFrom + stream.inq_len) >>> 0;
  const packet = (acknowledged: number, fin: boolean, note: string): SocketCall => ({
    kind: Call.SEND_RAW,
    level: 0,
    name: 0,
    data: packetFromPeer({
      local: { words: socket.src_addr, port: socket.src_port },
      peer: { words: socket.dst_addr, port: socket.dst_port },
      sequence: receiveNext,
      acknowledged,
      window: Math.min(0xffff, (stream.snd_wnd ?? 0) >>> stream.snd_wscale),
      fin,
    }),
    note,
  });
  const ourEnd: SocketCall[] = [
    optionCall(kSolTcp, kRepairQueue, u32(kSendQueue), 'TCP_REPAIR_QUEUE send'),
    { kind: Call.SHUTDOWN, level: kShutdownWrite, name: 0, data: new Uint8Array(0), note: 'our FIN' },
  ];
  const peerEnd: SocketCall[] = [packet(sendFrom, true, "the peer's FIN"), plainCall(Call.AWAIT_PEER_END, 'it is in')];
  switch (state) {
    case tcpState.finWait1:
      return ourEnd;
    case tcpState.finWait2:
      return [...ourEnd, packet(stream.outq_seq, false, "the peer's acknowledgement of our FIN")];
    case tcpState.closeWait:
      return peerEnd;
    case tcpState.lastAck:
      return [...peerEnd, ...ourEnd];
    case tcpState.closing:
      return [...ourEnd, ...peerEnd];
    default:
      return [];
  }
}

/** struct tcp_repair_opt {u32 code, value}[] */
function repairOptions(stream: tcp_stream_entry): Buffer {
  const options: number[] = [];
  if ((stream.opt_mask & kOptSack) !== 0) options.push(kSackPermitted, 0);
  if ((stream.opt_mask & kOptWindowScale) !== 0)
    options.push(kWindowScale, stream.snd_wscale | ((stream.rcv_wscale ?? 0) << 16));
  if ((stream.opt_mask & kOptTimestamps) !== 0) options.push(kTimestamps, 0);
  options.push(kMss, stream.mss_clamp);
  return Buffer.concat(options.map((word) => u32(word)));
}

function optionCall(level: number, name: number, data: Uint8Array, note: string): SocketCall {
  return { kind: Call.SETSOCKOPT, level, name, data, note };
}

function plainCall(kind: number, note: string): SocketCall {
  return { kind, level: 0, name: 0, data: new Uint8Array(0), note };
}

function sendCall(data: Uint8Array, note: string): SocketCall {
  return { kind: Call.SEND, level: 0, name: 0, data, note };
}

/** Is the other end of it in the images as well? */
function isInside(socket: inet_sk_entry, ctx: CompileContext): boolean {
  const key = (one: inet_sk_entry, swapped: boolean): string => {
    const ends = [
      `${one.src_port} ${plainWords(one.src_addr).join(' ')}`,
      `${one.dst_port} ${plainWords(one.dst_addr).join(' ')}`,
    ];
    return (swapped ? ends.reverse() : ends).join(' to ');
  };
  const wanted = key(socket, true);
  return [...ctx.images.files.values()].some(
    ({ isk }) =>
      isk !== undefined &&
      isk.type === socket.type &&
      isConnectionState(isk.state) &&
      (isk.ns_id ?? 0) === (socket.ns_id ?? 0) &&
      key(isk, false) === wanted,
  );
}

/** ::ffff:1.2.3.4 is 1.2.3.4. Words in network byte order, as they lie in memory. */
function plainWords(words: readonly number[]): readonly number[] {
  return words.length === 4 && words[0] === 0 && words[1] === 0 && words[2] === 0xffff0000 ? words.slice(3) : words;
}

/** A process of the plan that has the file, and its number there. */
function ownerOf(id: number, ctx: CompileContext): Owner | undefined {
  for (const { image, builder } of ctx.tasks.values()) {
    const descriptor = image.fds.find((one) => one.id === id);
    if (descriptor !== undefined) return { task: builder.index, fd: descriptor.fd };
  }
  return undefined;
}

function textOf(socket: Socket): string {
  const local = inetAddressOf(socket.localAddress);
  const peer = inetAddressOf(socket.peerAddress);
  return `${addressText(local.words, local.port)} to ${addressText(peer.words, peer.port)}`;
}
