// TCP and UDP sockets, v4 and v6: listening, bound, fresh, connected. What is
// special about a TCP connection is in tcp-connection.
import type { OpenFile, Socket } from '../../../nativecore/schema/messages.js';
import { fd_types, type inet_sk_entry, type tcp_opts_entry } from '../../../oci-spec/images/messages.js';
import type { CompileContext } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import { Phase, type SlotRef } from '../plan/builder.js';
import type { FileRoom } from '../room.js';
import { corrupt, descriptorPhrase, encodeOwner, hold, kOCloexec, setStatusFlags, u32 } from './file-common.js';
import { addressText, inetAddressOf, kInet, kInet6, socketAddress } from './inet-address.js';
import { namespaceOf } from './namespaces.js';
import {
  compileOptionsBeforeBind,
  compilePlainOptions,
  compileSocketOptions,
  encodePlainOptions,
  encodeSocketOptions,
  kReuseAddr,
  kSolIp,
  kSolIpv6,
  kSolSocket,
  kSolTcp,
  optionFlag,
  optionNumber,
  setOption,
} from './socket-options.js';
import {
  compileConnection,
  encodeConnection,
  forgetConnection,
  isConnectionState,
  tcpState,
} from './tcp-connection.js';

const kStream = 1;
const kDatagram = 2;
const kTcp = 6;
const kUdp = 17;

const kShutdownBoth = 2;
const kEnotconn = 107;

const kIpTos = 1;
const kIpTtl = 2;
const kIpPktinfo = 8;
const kIpFreebind = 15;
const kIpv6Only = 26;
const kIpv6RecvPktinfo = 49;
const kTcpNodelay = 1;
const kTcpCork = 3;
const kTcpKeepIdle = 4;
const kTcpKeepInterval = 5;
const kTcpKeepCount = 6;
const kDefaultTtl = 64;

export const inetSocketRoom: FileRoom = {
  kind: 'inet-socket',
  fdType: fd_types.INETSK,
  claims: (file) => file.socket?.family === kInet || file.socket?.family === kInet6,

  encode(file, fileId, ctx) {
    const socket = file.socket;
    if (socket === undefined || !isCarried(file, socket, ctx)) return undefined;
    const local = inetAddressOf(socket.localAddress);
    const peer = inetAddressOf(socket.peerAddress);
    const state = stateOf(socket);
    if (local.scope !== 0) {
      object(file, ctx, 'is bound to a link-local address, whose interface is not carried');
      return undefined;
    }
    const isk: inet_sk_entry = {
      id: fileId,
      ino: Number(BigInt.asUintN(32, socket.inode)),
      family: socket.family,
      type: socket.type,
      proto: socket.protocol,
      state,
      src_port: local.port,
      dst_port: peer.port,
      flags: file.statusFlags,
      backlog: state === tcpState.listen ? backlogOf(socket) : 0,
      src_addr: wordsOf(socket.family, local.words),
      dst_addr: wordsOf(socket.family, peer.words),
      fown: encodeOwner(file, ctx),
      opts: encodeSocketOptions(socket),
      v6only: socket.family === kInet6 ? optionFlag(socket, kSolIpv6, kIpv6Only) : undefined,
      ip_opts: {
        freebind: optionFlag(socket, kSolIp, kIpFreebind),
        pktinfo:
          socket.family === kInet6
            ? optionFlag(socket, kSolIpv6, kIpv6RecvPktinfo)
            : optionFlag(socket, kSolIp, kIpPktinfo),
        tos: optionNumber(socket, kSolIp, kIpTos),
        ttl: optionNumber(socket, kSolIp, kIpTtl),
      },
      ns_id: ctx.namespaceId('net', socket.netNamespace),
      // Not even as 0: CRIU would call shutdown(2) for it.
      shutdown: undefined,
      tcp_opts:
        socket.type === kStream
          ? {
              cork: optionFlag(socket, kSolTcp, kTcpCork),
              nodelay: optionFlag(socket, kSolTcp, kTcpNodelay),
              keepcnt: optionNumber(socket, kSolTcp, kTcpKeepCount),
              keepidle: optionNumber(socket, kSolTcp, kTcpKeepIdle),
              keepintvl: optionNumber(socket, kSolTcp, kTcpKeepInterval),
            }
          : undefined,
      stasis: encodePlainOptions(socket),
    };
    if (isTcp(isk) && isConnectionState(state) && !encodeConnection(file, socket, isk, ctx)) return undefined;
    return { type: fd_types.INETSK, id: fileId, isk };
  },

  compile(entry, ctx) {
    const socket = entry.isk;
    if (socket === undefined) throw corrupt('files.img', `has no inet socket in entry ${entry.id}`);
    const from = `file[${entry.id}]`;
    checkEntry(socket, entry.id);
    const task = ctx.root.builder;
    const name = `${socket.type === kStream ? 'tcp' : 'udp'} socket ${entry.id}`;
    const low = ctx.plan.slot(name);
    task.step(Phase.FILES, 'socket', [socket.family, socket.type | kOCloexec, socket.proto], {
      out: low,
      from,
      note: describe(socket),
    });
    compileOptionsBeforeBind(ctx, low, socket.opts, from);
    if (socket.v6only !== undefined && socket.family === kInet6)
      setOption(ctx, low, kSolIpv6, kIpv6Only, u32(socket.v6only ? 1 : 0), from, 'IPV6_V6ONLY');
    if (socket.ip_opts?.freebind === true) setOption(ctx, low, kSolIp, kIpFreebind, u32(1), from, 'IP_FREEBIND');
    // Before listen: accepted sockets inherit them, and the window follows the buffer.
    const isConnection = isTcp(socket) && isConnectionState(socket.state);
    const isMade = isConnection && !isClosedOnRestore(ctx);
    // A connection gets its buffers when it is made, by who may force them.
    compileSocketOptions(ctx, low, socket.opts, from, { bufferSizes: isMade });
    compileIpOptions(ctx, low, socket, from);
    compilePlainOptions(ctx, low, socket.stasis, from);
    if (isConnection) {
      if (isMade) compileConnection(socket, entry.id, ctx);
      else {
        closeBothWays(ctx, low, from);
        forgetConnection(socket, entry.id, ctx);
      }
      setStatusFlags(task, Phase.FILES, low, socket.flags, from);
      return hold(ctx, low, name, from);
    }
    if (socket.src_port !== 0) bindTo(ctx, low, socket, from);
    if (socket.state === tcpState.listen) {
      task.step(Phase.FILES, 'listen', [low, socket.backlog], { from, note: `backlog ${socket.backlog}` });
    } else if (socket.type === kDatagram && socket.dst_port !== 0) {
      const address = socketAddress(socket.family, socket.dst_port, socket.dst_addr);
      task.step(Phase.FILES, 'connect', [low, ctx.plan.blob(address), address.length], { from });
    }
    setStatusFlags(task, Phase.FILES, low, socket.flags, from);
    return hold(ctx, low, name, from);
  },
};

function isTcp(socket: inet_sk_entry): boolean {
  return socket.type === kStream;
}

/** CRIU wants the length of the family also where there is no address. */
function wordsOf(family: number, words: readonly number[]): number[] {
  if (words.length > 0) return [...words];
  return family === kInet ? [0] : [0, 0, 0, 0];
}

/** Asked for now, or when the checkpoint was taken: then there is nothing to make a connection from. */
function isClosedOnRestore(ctx: CompileContext): boolean {
  return ctx.options.tcp === 'close' || ctx.images.inventory.tcp_close === true;
}

/** Reads give end of file, writes EPIPE. Of a socket without a peer the kernel takes it, and says ENOTCONN. */
function closeBothWays(ctx: CompileContext, low: SlotRef, from: string): void {
  ctx.root.builder.step(Phase.FILES, 'shutdown', [low, kShutdownBoth], {
    from,
    tolerate: [kEnotconn],
    note: 'the connection is not made again',
  });
}

function object(file: OpenFile, ctx: EncodeContext, what: string, hint?: string): void {
  ctx.object('CAPTURE_FD_UNSUPPORTED', `${descriptorPhrase(file, ctx)} ${what}`, ctx.subjectOfFile(file), hint);
}

function isCarried(file: OpenFile, socket: Socket, ctx: EncodeContext): boolean {
  const tcp = socket.type === kStream && (socket.protocol === kTcp || socket.protocol === 0);
  const udp = socket.type === kDatagram && (socket.protocol === kUdp || socket.protocol === 0);
  if (!tcp && !udp) {
    object(
      file,
      ctx,
      `is an internet socket of type ${socket.type}, protocol ${socket.protocol}, which is not carried`,
      'let the process close it first',
    );
    return false;
  }
  if (udp && socket.inputBytes > 0)
    ctx.degrade(
      'UDP_QUEUE_LOST',
      `${descriptorPhrase(file, ctx)} has unread datagrams, which are lost as the network may lose them`,
      ctx.subjectOfFile(file),
    );
  if (isElsewhere(socket, ctx)) {
    object(file, ctx, 'is a socket of another network namespace than that of its task');
    return false;
  }
  if (tcp) degradeWhatIsLost(file, socket, ctx);
  return true;
}

/** What a TCP socket without a connection may hold all the same. */
function degradeWhatIsLost(file: OpenFile, socket: Socket, ctx: EncodeContext): void {
  const state = stateOf(socket);
  const info = Buffer.from(socket.tcpInfo);
  // Of a listening socket, tcp_info carries the length of its queue in tcpi_unacked.
  const waiting = state === tcpState.listen && info.length >= 28 ? info.readUInt32LE(24) : 0;
  if (waiting > 0)
    ctx.degrade(
      'TCP_ACCEPT_QUEUE_LOST',
      `${descriptorPhrase(file, ctx)} has ${waiting} TCP connections that were not accepted yet, which are lost`,
      ctx.subjectOfFile(file),
    );
  if (state === tcpState.closed && socket.inputBytes > 0)
    ctx.degrade(
      'TCP_DATA_LOST',
      `${descriptorPhrase(file, ctx)} has ${socket.inputBytes} unread bytes of a TCP connection that is over, which are lost`,
      ctx.subjectOfFile(file),
    );
}

export function isElsewhere(socket: Socket, ctx: EncodeContext): boolean {
  const own = namespaceOf(ctx, 'net')?.inode;
  return own !== undefined && socket.netNamespace !== 0n && socket.netNamespace !== own;
}

/** struct tcp_info starts with the state; without it, a peer address tells. */
function stateOf(socket: Socket): number {
  if (socket.type !== kStream) return socket.peerAddress.length > 0 ? tcpState.established : tcpState.closed;
  const state = socket.tcpInfo[0];
  if (state !== undefined && state !== 0) return state;
  return socket.peerAddress.length > 0 ? tcpState.established : tcpState.closed;
}

/** Of a listening socket, tcp_info carries the backlog in tcpi_sacked (offset 28). */
function backlogOf(socket: Socket): number {
  const info = Buffer.from(socket.tcpInfo);
  return info.length >= 32 ? info.readUInt32LE(28) : 128;
}

function describe(socket: inet_sk_entry): string {
  const state = socket.state === tcpState.listen ? 'listening on ' : '';
  return `${state}${addressText(socket.src_addr, socket.src_port)}`;
}

/** TCP: connections of the old socket may linger (TIME_WAIT) on its port; they must not keep the new one away. */
function bindTo(ctx: CompileContext, low: SlotRef, socket: inet_sk_entry, from: string): void {
  const address = socketAddress(socket.family, socket.src_port, socket.src_addr);
  const lenient = socket.type === kStream && socket.opts.reuseaddr !== true;
  if (lenient) setOption(ctx, low, kSolSocket, kReuseAddr, u32(1), from, 'SO_REUSEADDR while binding');
  ctx.root.builder.step(Phase.FILES, 'bind', [low, ctx.plan.blob(address), address.length], {
    from,
    note: describe(socket),
  });
  if (lenient) setOption(ctx, low, kSolSocket, kReuseAddr, u32(0), from, 'SO_REUSEADDR as it was');
}

function compileIpOptions(ctx: CompileContext, low: SlotRef, socket: inet_sk_entry, from: string): void {
  const ip = socket.ip_opts;
  if (ip?.pktinfo === true) {
    if (socket.family === kInet6) setOption(ctx, low, kSolIpv6, kIpv6RecvPktinfo, u32(1), from, 'IPV6_RECVPKTINFO');
    else setOption(ctx, low, kSolIp, kIpPktinfo, u32(1), from, 'IP_PKTINFO');
  }
  if (ip?.tos !== undefined && ip.tos !== 0) setOption(ctx, low, kSolIp, kIpTos, u32(ip.tos), from, 'IP_TOS');
  if (ip?.ttl !== undefined && ip.ttl !== kDefaultTtl) setOption(ctx, low, kSolIp, kIpTtl, u32(ip.ttl), from, 'IP_TTL');
  const tcp = socket.tcp_opts;
  if (socket.type !== kStream || tcp === undefined) return;
  if (isConnectionState(socket.state)) return compileKeepalive(ctx, low, tcp, from);
  if (tcp.nodelay === true) setOption(ctx, low, kSolTcp, kTcpNodelay, u32(1), from, 'TCP_NODELAY');
  if (tcp.cork === true) setOption(ctx, low, kSolTcp, kTcpCork, u32(1), from, 'TCP_CORK');
  compileKeepalive(ctx, low, tcp, from);
}

function compileKeepalive(ctx: CompileContext, low: SlotRef, tcp: tcp_opts_entry, from: string): void {
  const keep = (value: number | undefined, usual: number, name: number, note: string): void => {
    if (value !== undefined && value !== usual && value !== 0)
      setOption(ctx, low, kSolTcp, name, u32(value), from, note);
  };
  keep(tcp.keepcnt, 9, kTcpKeepCount, 'TCP_KEEPCNT');
  keep(tcp.keepidle, 7200, kTcpKeepIdle, 'TCP_KEEPIDLE');
  keep(tcp.keepintvl, 75, kTcpKeepInterval, 'TCP_KEEPINTVL');
}

function checkEntry(socket: inet_sk_entry, id: number): void {
  const words = socket.family === kInet ? 1 : 4;
  const bad =
    (socket.family !== kInet && socket.family !== kInet6) ||
    (socket.type !== kStream && socket.type !== kDatagram) ||
    (socket.src_port !== 0 && socket.src_addr.length !== words) ||
    (socket.dst_port !== 0 && socket.dst_addr.length !== words) ||
    socket.src_port > 0xffff ||
    socket.dst_port > 0xffff;
  if (bad) throw corrupt('files.img', `has an impossible internet socket in entry ${id}`);
}
