// Unix sockets: pairs and connections inside the tree with what is queued in
// them, listening and datagram sockets with a path or an abstract name. A
// socket whose peer is outside, descriptors in queues and connections that
// nobody has accepted yet are refused by name. Images to steps is
// unix-socket-plan.ts.
import { posix } from 'node:path';
import type { OpenFile, Socket } from '../../../nativecore/schema/messages.js';
import { fd_types, type unix_sk_entry } from '../../../oci-spec/images/messages.js';
import type { EncodeContext } from '../encode-context.js';
import type { FileRoom } from '../room.js';
import { corrupt, descriptorPhrase, encodeOwner, linkText } from './file-common.js';
import { isElsewhere } from './inet-socket.js';
import { encodeSocketOptions } from './socket-options.js';
import { preparedSockets, printableName } from './unix-socket-plan.js';
import { insideGid, insideUid } from './user-namespace.js';

const kUnix = 1;
const kListen = 10;

// unix_diag attributes, linux/unix_diag.h
const kDiagName = 0;
const kDiagPeer = 2;
const kDiagIcons = 3;
const kDiagRqlen = 4;
const kDiagShutdown = 6;
const kDiagHeadBytes = 16;

interface UnixDiag {
  readonly state: number;
  readonly name: Buffer;
  readonly peer: number;
  readonly pendingConnections: number;
  readonly backlog: number;
  readonly shutdown: number;
}

const diags = new WeakMap<EncodeContext, Map<number, UnixDiag>>();

function diagOf(ctx: EncodeContext, inode: number): UnixDiag | undefined {
  let known = diags.get(ctx);
  if (known === undefined) {
    known = new Map();
    for (const namespace of ctx.capture.netNamespaces)
      for (const reply of namespace.unixSockets) {
        const parsed = parseDiag(Buffer.from(reply));
        if (parsed !== undefined) known.set(parsed.inode, parsed.diag);
      }
    diags.set(ctx, known);
  }
  return known.get(inode);
}

/** struct unix_diag_msg {u8 family, type, state, pad; u32 ino; u32 cookie[2]} and attributes. */
export function parseDiag(reply: Buffer): { inode: number; diag: UnixDiag } | undefined {
  if (reply.length < kDiagHeadBytes) return undefined;
  const attributes = new Map<number, Buffer>();
  for (let at = kDiagHeadBytes; at + 4 <= reply.length;) {
    const length = reply.readUInt16LE(at);
    if (length < 4 || at + length > reply.length) break;
    attributes.set(reply.readUInt16LE(at + 2), reply.subarray(at + 4, at + length));
    at += (length + 3) & ~3;
  }
  const state = reply.readUInt8(2);
  const icons = attributes.get(kDiagIcons);
  const queue = attributes.get(kDiagRqlen);
  return {
    inode: reply.readUInt32LE(4),
    diag: {
      state,
      name: Buffer.from(attributes.get(kDiagName) ?? Buffer.alloc(0)),
      peer: attributes.get(kDiagPeer)?.readUInt32LE(0) ?? 0,
      pendingConnections: icons === undefined ? 0 : Math.floor(icons.length / 4),
      // Of a listening socket the second word is the backlog.
      backlog: queue !== undefined && queue.length >= 8 && state === kListen ? queue.readUInt32LE(4) : 0,
      shutdown: attributes.get(kDiagShutdown)?.readUInt8(0) ?? 0,
    },
  };
}

export const unixSocketRoom: FileRoom = {
  kind: 'unix-socket',
  fdType: fd_types.UNIXSK,
  claims: (file) => file.socket?.family === kUnix,

  encode(file, fileId, ctx) {
    const socket = file.socket;
    if (socket === undefined) return undefined;
    const inode = Number(BigInt.asUintN(32, socket.inode));
    const diag = diagOf(ctx, inode);
    if (diag === undefined) {
      object(file, ctx, 'is a unix socket that the kernel does not list (its network namespace was not captured)');
      return undefined;
    }
    if (!isCarried(file, socket, diag, ctx)) return undefined;
    // getsockname has the exact bytes; the diag name is cut at the first NUL of a path.
    const name = socket.localAddress.length > 2 ? trimPath(Buffer.from(socket.localAddress).subarray(2)) : diag.name;
    const usk: unix_sk_entry = {
      id: fileId,
      ino: inode,
      type: socket.type,
      state: diag.state,
      flags: file.statusFlags,
      uflags: 0,
      backlog: diag.state === kListen ? diag.backlog : 0,
      peer: diag.peer,
      fown: encodeOwner(file, ctx),
      opts: encodeSocketOptions(socket),
      name,
      shutdown: diag.shutdown as unix_sk_entry['shutdown'],
      ...boundFacts(file, name, ctx),
      ns_id: ctx.namespaceId('net', socket.netNamespace),
    };
    for (const message of socket.queue)
      ctx.images.add('sk-queues', undefined, { id_for: fileId, length: message.length, scm: [] }, message);
    return { type: fd_types.UNIXSK, id: fileId, usk };
  },

  compile(entry, ctx) {
    const slot = preparedSockets(ctx).get(entry.id);
    if (slot === undefined) throw corrupt('files.img', `has no unix socket in entry ${entry.id}`);
    return slot;
  },
};

function object(file: OpenFile, ctx: EncodeContext, what: string, hint?: string): void {
  ctx.object('CAPTURE_FD_UNSUPPORTED', `${descriptorPhrase(file, ctx)} ${what}`, ctx.subjectOfFile(file), hint);
}

function isCarried(file: OpenFile, socket: Socket, diag: UnixDiag, ctx: EncodeContext): boolean {
  const before = ctx.objections.length;
  if (isElsewhere(socket, ctx)) object(file, ctx, 'is a socket of another network namespace than that of its task');
  if (socket.queueHasRights)
    object(
      file,
      ctx,
      'is a unix socket with descriptors in its queue, which are not carried',
      'let the receiver take them first',
    );
  if (diag.pendingConnections > 0) {
    object(
      file,
      ctx,
      `is a listening unix socket with ${diag.pendingConnections} connections that nobody has accepted yet`,
      'try again when the program has accepted them',
    );
  }
  if (diag.peer !== 0 && !ctx.capture.openFiles.some((other) => peerInode(other) === diag.peer)) {
    object(
      file,
      ctx,
      `is a unix socket connected to socket:[${diag.peer}], which is outside the tree${nameOfPeer(socket)}`,
      'close the connection before the checkpoint',
    );
  }
  return ctx.objections.length === before;
}

function peerInode(file: OpenFile): number | undefined {
  return file.socket === undefined ? undefined : Number(BigInt.asUintN(32, file.socket.inode));
}

function nameOfPeer(socket: Socket): string {
  const name = trimPath(Buffer.from(socket.peerAddress).subarray(2));
  return name.length === 0 ? '' : ` ("${printableName(name)}")`;
}

/** A path ends at its NUL; an abstract name starts with one and has no end but its length. */
function trimPath(name: Buffer): Buffer {
  if (name.length === 0 || name[0] === 0) return Buffer.from(name);
  const end = name.indexOf(0);
  return Buffer.from(end < 0 ? name : name.subarray(0, end));
}

/** What a path name does not tell: the directory that it started from, and whether the path still is this socket. */
function boundFacts(file: OpenFile, name: Buffer, ctx: EncodeContext): Partial<unix_sk_entry> {
  const bound = file.socket?.boundFile;
  if (name.length === 0 || name[0] === 0) return {};
  if (bound?.stat === undefined) {
    if (name[0] === 0x2f) return {};
    // The working directory of its task is the best guess.
    const cwd = ctx.taskOfHostPid(file.hostPid)?.raw.cwd;
    return cwd === undefined ? {} : { name_dir: linkText(cwd) };
  }
  const path = linkText(bound).replace(/ \(deleted\)$/, '');
  const relative = name.toString('utf8').replace(/^(\.\/)+/, '');
  const directory = path.endsWith(`/${relative}`) ? path.slice(0, -relative.length - 1) || '/' : posix.dirname(path);
  return {
    ...(name[0] === 0x2f ? {} : { name_dir: directory }),
    deleted: !bound.pathMatches,
    file_perms: { mode: bound.stat.mode, uid: insideUid(ctx, bound.stat.uid), gid: insideGid(ctx, bound.stat.gid) },
    mnt_id: Number(bound.stat.mountId),
  };
}
