// Options that all sockets have: values as getsockopt gave them, and the
// setsockopt calls that bring them back.
import type { Socket } from '../../../nativecore/schema/messages.js';
import type { sk_opts_entry, stasis_socket_entry } from '../../../oci-spec/images/messages.js';
import type { CompileContext } from '../compile-context.js';
import { Phase, type SlotRef } from '../plan/builder.js';
import { corrupt, u32, u64s } from './file-common.js';

export const kSolSocket = 1;
export const kSolIp = 0;
export const kSolTcp = 6;
export const kSolIpv6 = 41;

export const kReuseAddr = 2;
const kDontRoute = 5;
const kBroadcast = 6;
const kSendBuffer = 7;
const kReceiveBuffer = 8;
const kKeepalive = 9;
const kOobInline = 10;
const kNoCheck = 11;
const kPriority = 12;
const kLinger = 13;
const kReusePort = 15;
const kPassCred = 16;
const kReceiveLowat = 18;
const kReceiveTimeout = 20;
const kSendTimeout = 21;
const kBindToDevice = 25;
const kAttachFilter = 26;
export const kSendBufferForce = 32;
export const kReceiveBufferForce = 33;
const kPassSec = 34;
const kMark = 36;
const kBufferLock = 72;

/** The raw value of an option, if the capture has it. */
export function optionBytes(socket: Socket, level: number, name: number): Buffer | undefined {
  const found = socket.options.find((option) => option.level === level && option.name === name);
  return found === undefined ? undefined : Buffer.from(found.value);
}

export function optionNumber(socket: Socket, level: number, name: number): number | undefined {
  const bytes = optionBytes(socket, level, name);
  if (bytes === undefined || bytes.length === 0) return undefined;
  return bytes.length >= 4 ? bytes.readInt32LE(0) : bytes[0];
}

export function optionFlag(socket: Socket, level: number, name: number): boolean | undefined {
  const value = optionNumber(socket, level, name);
  return value === undefined ? undefined : value !== 0;
}

export function encodeSocketOptions(socket: Socket): sk_opts_entry {
  const number = (name: number): number | undefined => {
    const value = optionNumber(socket, kSolSocket, name);
    return value === undefined ? undefined : value >>> 0;
  };
  const flag = (name: number): boolean | undefined => optionFlag(socket, kSolSocket, name);
  const time = (name: number): [bigint, bigint] => {
    const bytes = optionBytes(socket, kSolSocket, name);
    return bytes !== undefined && bytes.length >= 16 ? [bytes.readBigUInt64LE(0), bytes.readBigUInt64LE(8)] : [0n, 0n];
  };
  const [so_snd_tmo_sec, so_snd_tmo_usec] = time(kSendTimeout);
  const [so_rcv_tmo_sec, so_rcv_tmo_usec] = time(kReceiveTimeout);
  const linger = optionBytes(socket, kSolSocket, kLinger);
  const device = optionBytes(socket, kSolSocket, kBindToDevice)?.toString('latin1').replace(/\0.*$/s, '');
  return {
    so_sndbuf: number(kSendBuffer) ?? 0,
    so_rcvbuf: number(kReceiveBuffer) ?? 0,
    so_snd_tmo_sec,
    so_snd_tmo_usec,
    so_rcv_tmo_sec,
    so_rcv_tmo_usec,
    reuseaddr: flag(kReuseAddr),
    so_priority: number(kPriority),
    so_rcvlowat: number(kReceiveLowat),
    so_mark: number(kMark),
    so_passcred: flag(kPassCred),
    so_passsec: flag(kPassSec),
    so_dontroute: flag(kDontRoute),
    so_no_check: flag(kNoCheck),
    so_bound_dev: device === undefined || device === '' ? undefined : device,
    so_filter: encodeFilter(optionBytes(socket, kSolSocket, kAttachFilter)),
    so_reuseport: flag(kReusePort),
    so_broadcast: flag(kBroadcast),
    so_keepalive: flag(kKeepalive),
    so_oobinline: number(kOobInline),
    so_linger:
      linger !== undefined && linger.length >= 8 && linger.readInt32LE(0) !== 0 ? linger.readUInt32LE(4) : undefined,
    so_buf_lock: number(kBufferLock),
  };
}

interface PlainOption {
  readonly level: number;
  readonly name: number;
  /** What a fresh socket has. */
  readonly fresh: number;
  readonly label: string;
}

const plain = (level: number, name: number, fresh: number, label: string): PlainOption => ({
  level,
  name,
  fresh,
  label,
});

/** Options that the format has no place for; all may be set before bind. Numbers: linux/in.h, in6.h, tcp.h, asm/socket.h. */
const plainOptions: readonly PlainOption[] = [
  plain(kSolSocket, 29, 0, 'SO_TIMESTAMP'),
  plain(kSolSocket, 35, 0, 'SO_TIMESTAMPNS'),
  plain(kSolSocket, 40, 0, 'SO_RXQ_OVFL'),
  plain(kSolIp, 10, 1, 'IP_MTU_DISCOVER'),
  plain(kSolIp, 11, 0, 'IP_RECVERR'),
  plain(kSolIp, 12, 0, 'IP_RECVTTL'),
  plain(kSolIp, 13, 0, 'IP_RECVTOS'),
  plain(kSolIp, 19, 0, 'IP_TRANSPARENT'),
  plain(kSolIp, 24, 0, 'IP_BIND_ADDRESS_NO_PORT'),
  plain(kSolIpv6, 16, 64, 'IPV6_UNICAST_HOPS'),
  plain(kSolIpv6, 25, 0, 'IPV6_RECVERR'),
  plain(kSolIpv6, 67, 0, 'IPV6_TCLASS'),
  plain(kSolIpv6, 75, 0, 'IPV6_TRANSPARENT'),
  plain(kSolIpv6, 78, 0, 'IPV6_FREEBIND'),
  plain(kSolTcp, 9, 0, 'TCP_DEFER_ACCEPT'),
  plain(kSolTcp, 18, 0, 'TCP_USER_TIMEOUT'),
  plain(kSolTcp, 23, 0, 'TCP_FASTOPEN'),
];

/** Those that differ from a fresh socket. */
export function encodePlainOptions(socket: Socket): stasis_socket_entry | undefined {
  const options = plainOptions.flatMap(({ level, name, fresh }) => {
    const value = optionNumber(socket, level, name);
    return value === undefined || value === fresh ? [] : [{ level, name, value: u32(value) }];
  });
  return options.length === 0 ? undefined : { options };
}

export function compilePlainOptions(
  ctx: CompileContext,
  socket: SlotRef,
  entry: stasis_socket_entry | undefined,
  from: string,
): void {
  for (const { level, name, value } of entry?.options ?? []) {
    const known = plainOptions.find((option) => option.level === level && option.name === name);
    // Images name no option that we do not know to be harmless.
    if (known === undefined || value.length !== 4)
      throw corrupt('files.img', `sets socket option ${name} of level ${level}`);
    setOption(ctx, socket, level, name, value, from, known.label);
  }
}

/** struct sock_filter[]: code u16, jt u8, jf u8, k u32. */
function encodeFilter(program: Buffer | undefined): bigint[] {
  const words: bigint[] = [];
  for (let at = 0; program !== undefined && at + 8 <= program.length; at += 8) {
    const code = BigInt(program.readUInt16LE(at));
    const jumps = (BigInt(program.readUInt8(at + 2)) << 40n) | (BigInt(program.readUInt8(at + 3)) << 32n);
    words.push((code << 48n) | jumps | BigInt(program.readUInt32LE(at + 4)));
  }
  return words;
}

export function setOption(
  ctx: CompileContext,
  socket: SlotRef,
  level: number,
  name: number,
  value: Uint8Array,
  from: string,
  note = '',
): void {
  ctx.root.builder.step(Phase.FILES, 'setsockopt', [socket, level, name, ctx.plan.blob(value), value.length], {
    from,
    note,
  });
}

/** What must be there before bind: addresses in use are judged by it. */
export function compileOptionsBeforeBind(
  ctx: CompileContext,
  socket: SlotRef,
  options: sk_opts_entry,
  from: string,
): void {
  if (options.reuseaddr === true) setOption(ctx, socket, kSolSocket, kReuseAddr, u32(1), from, 'SO_REUSEADDR');
  if (options.so_reuseport === true) setOption(ctx, socket, kSolSocket, kReusePort, u32(1), from, 'SO_REUSEPORT');
  if (options.so_bound_dev !== undefined)
    setOption(
      ctx,
      socket,
      kSolSocket,
      kBindToDevice,
      Buffer.from(`${options.so_bound_dev}\0`),
      from,
      'SO_BINDTODEVICE',
    );
}

/** The rest, after queues have been filled: small buffers would not take them. */
export function compileSocketOptions(
  ctx: CompileContext,
  socket: SlotRef,
  options: sk_opts_entry,
  from: string,
  except: { readonly bufferSizes?: boolean } = {},
): void {
  const flag = (value: boolean | undefined, name: number, note: string): void => {
    if (value === true) setOption(ctx, socket, kSolSocket, name, u32(1), from, note);
  };
  flag(options.so_passcred, kPassCred, 'SO_PASSCRED');
  flag(options.so_passsec, kPassSec, 'SO_PASSSEC');
  flag(options.so_dontroute, kDontRoute, 'SO_DONTROUTE');
  flag(options.so_no_check, kNoCheck, 'SO_NO_CHECK');
  flag(options.so_broadcast, kBroadcast, 'SO_BROADCAST');
  flag(options.so_keepalive, kKeepalive, 'SO_KEEPALIVE');
  flag((options.so_oobinline ?? 0) !== 0, kOobInline, 'SO_OOBINLINE');
  const number = (value: number | undefined, usual: number, name: number, note: string): void => {
    if (value !== undefined && value !== usual) setOption(ctx, socket, kSolSocket, name, u32(value), from, note);
  };
  number(options.so_priority, 0, kPriority, 'SO_PRIORITY');
  number(options.so_rcvlowat, 1, kReceiveLowat, 'SO_RCVLOWAT');
  number(options.so_mark, 0, kMark, 'SO_MARK');
  if (options.so_linger !== undefined)
    setOption(ctx, socket, kSolSocket, kLinger, Buffer.concat([u32(1), u32(options.so_linger)]), from, 'SO_LINGER');
  const time = (sec: bigint, usec: bigint, name: number, note: string): void => {
    if (sec !== 0n || usec !== 0n) setOption(ctx, socket, kSolSocket, name, u64s(sec, usec), from, note);
  };
  time(options.so_snd_tmo_sec, options.so_snd_tmo_usec, kSendTimeout, 'SO_SNDTIMEO');
  time(options.so_rcv_tmo_sec, options.so_rcv_tmo_usec, kReceiveTimeout, 'SO_RCVTIMEO');
  attachFilter(ctx, socket, options, from);
  if (except.bufferSizes === true) return;
  for (const { name, value, note } of lastBufferSizes(options))
    setOption(ctx, socket, kSolSocket, name, value, from, note);
}

/** Options of SOL_SOCKET, to be set in this order. */
export function lastBufferSizes(
  options: sk_opts_entry,
): { readonly name: number; readonly value: Uint8Array; readonly note: string }[] {
  const sizes = [];
  // The kernel doubles what is set, and what it reports is doubled already.
  if (options.so_sndbuf > 0)
    sizes.push({ name: kSendBufferForce, value: u32(options.so_sndbuf >>> 1), note: 'SO_SNDBUFFORCE' });
  if (options.so_rcvbuf > 0)
    sizes.push({ name: kReceiveBufferForce, value: u32(options.so_rcvbuf >>> 1), note: 'SO_RCVBUFFORCE' });
  // Setting a size locks it; TCP tunes its buffers only while they are unlocked.
  if (options.so_buf_lock !== undefined)
    sizes.push({ name: kBufferLock, value: u32(options.so_buf_lock & 3), note: 'SO_BUF_LOCK' });
  return sizes;
}

/** Room for a queue that is about to be sent from this socket. */
export function enlargeSendBuffer(ctx: CompileContext, socket: SlotRef, bytes: number, from: string): void {
  setOption(ctx, socket, kSolSocket, kSendBufferForce, u32(bytes), from, 'room for the queue');
}

function attachFilter(ctx: CompileContext, socket: SlotRef, options: sk_opts_entry, from: string): void {
  if (options.so_filter.length === 0) return;
  const program = Buffer.alloc(8 * options.so_filter.length);
  options.so_filter.forEach((word, index) => {
    program.writeUInt16LE(Number(word >> 48n), 8 * index);
    program.writeUInt8(Number((word >> 40n) & 0xffn), 8 * index + 2);
    program.writeUInt8(Number((word >> 32n) & 0xffn), 8 * index + 3);
    program.writeUInt32LE(Number(word & 0xffffffffn), 8 * index + 4);
  });
  // struct sock_fprog: length u16, padding, pointer
  const head = Buffer.alloc(16);
  head.writeUInt16LE(options.so_filter.length, 0);
  const fprog = ctx.plan.blob(head, [{ offset: 8, blob: ctx.plan.blob(program) }]);
  ctx.root.builder.step(Phase.FILES, 'setsockopt', [socket, kSolSocket, kAttachFilter, fprog, head.length], {
    from,
    note: 'SO_ATTACH_FILTER',
  });
}
