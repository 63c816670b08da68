// Open file descriptions: each of the capture goes to the first room that
// claims it, each of the images is opened once: in the root task, at a number
// above every target's, or where its only descriptor belongs. Descriptors, the
// numbers of tasks, are another room.
import type { OpenFile } from '../../../nativecore/schema/messages.js';
import { fd_types } from '../../../oci-spec/images/messages.js';
import type { CompileContext } from '../compile-context.js';
import type { EncodeContext } from '../encode-context.js';
import type { FileRoom, Room } from '../room.js';
import { charDeviceRoom } from './char-device.js';
import { makeDeletedFiles } from './deleted-file.js';
import { epollRoom } from './epoll.js';
import { eventfdRoom } from './eventfd.js';
import { fifoRoom } from './fifo.js';
import {
  compileHeldDescriptors,
  corrupt,
  descriptorPhrase,
  fileType,
  kBlockDeviceType,
  kSocketType,
  linkText,
} from './file-common.js';
import { inetSocketRoom } from './inet-socket.js';
import { inotifyRoom } from './inotify.js';
import { memfdRoom, openMemfds } from './memfd.js';
import { holdUserfaultfdDevice } from './memory-fills.js';
import { pipeRoom } from './pipe.js';
import { regularFileRoom } from './regular-file.js';
import { signalfdRoom } from './signalfd.js';
import { timerfdRoom } from './timerfd.js';
import { settleTerminals, ttyRoom } from './tty.js';
import { unixSocketRoom } from './unix-socket.js';

/** Asked in this order which open file is theirs; the most common kinds come first. */
export const fileRooms: readonly FileRoom[] = [
  regularFileRoom,
  pipeRoom,
  // before devices in general
  ttyRoom,
  charDeviceRoom,
  unixSocketRoom,
  inetSocketRoom,
  epollRoom,
  eventfdRoom,
  timerfdRoom,
  signalfdRoom,
  inotifyRoom,
  fifoRoom,
  memfdRoom,
];

export const filesRoom: Room = {
  kind: 'files',

  encode(ctx) {
    ctx.capture.openFiles.forEach((file, index) => {
      const room = fileRooms.find((candidate) => candidate.claims(file, ctx));
      if (room === undefined) {
        objectToKind(file, ctx);
        return;
      }
      const id = ctx.newFileId();
      const entry = room.encode(file, id, ctx);
      if (entry === undefined) return;
      ctx.addFile(entry);
      ctx.setOpenFileId(index, id);
    });
  },

  compile(ctx) {
    compileHeldDescriptors(ctx);
    openMemfds(ctx);
    holdUserfaultfdDevice(ctx);
    makeDeletedFiles(ctx);
    settleTerminals(ctx);
    const uses = countUses(ctx);
    for (const task of ctx.images.tasks)
      for (const descriptor of task.fds) {
        if (ctx.fileSlots.has(descriptor.id) || ctx.filesInPlace.has(descriptor.id)) continue;
        const entry = ctx.images.files.get(descriptor.id);
        if (entry === undefined)
          throw corrupt(
            'files.img',
            `has no file ${descriptor.id}, which fd ${descriptor.fd} of pid ${task.pid} names`,
          );
        const room = roomOfType(entry.type);
        if (room === undefined) {
          ctx.object(
            'IMAGE_FEATURE_UNSUPPORTED',
            `fd ${descriptor.fd} of pid ${task.pid} is ${nameOfType(entry.type)}, which is not carried`,
            { nsPid: task.pid, targetFd: descriptor.fd, image: 'files.img' },
          );
          continue;
        }
        if (uses.get(descriptor.id) === 1 && room.opensInPlace?.(entry, ctx) === true)
          ctx.filesInPlace.add(descriptor.id);
        else ctx.fileSlots.set(descriptor.id, room.compile(entry, ctx));
      }
  },
};

/** How many descriptors each file has; tables that tasks share are counted once. */
function countUses(ctx: CompileContext): ReadonlyMap<number, number> {
  const uses = new Map<number, number>();
  const counted = new Set<number>();
  for (const task of ctx.images.tasks) {
    const table = task.ids?.files_id;
    if (table !== undefined && counted.has(table)) continue;
    if (table !== undefined) counted.add(table);
    for (const { id } of task.fds) uses.set(id, (uses.get(id) ?? 0) + 1);
  }
  return uses;
}

/** The room of an image entry; undefined for kinds that CRIU carries and we do not. */
export function roomOfType(type: number): FileRoom | undefined {
  return fileRooms.find((room) => room.fdType === type);
}

const typeNames: Readonly<Record<number, string>> = {
  [fd_types.FANOTIFY]: 'a fanotify group',
  [fd_types.PACKETSK]: 'a packet socket',
  [fd_types.NETLINKSK]: 'a netlink socket',
  [fd_types.NS]: 'a namespace',
  [fd_types.TUNF]: 'a tun device',
  [fd_types.EXT]: 'a file that a plugin carried',
  [fd_types.BPFMAP]: 'a BPF map',
  [fd_types.PIDFD]: 'a pidfd',
};

function nameOfType(type: number): string {
  return typeNames[type] ?? `a file of unknown kind ${type}`;
}

const kFamilyNames: Readonly<Record<number, string>> = {
  15: 'a PF_KEY socket',
  16: 'a netlink socket',
  17: 'a packet socket',
  31: 'a bluetooth socket',
  38: 'a kernel crypto socket',
  40: 'a vsock socket',
  44: 'an XDP socket',
};

/** By link text; what to do where something is known to help. */
const kinds: readonly { readonly link: RegExp; readonly what: string; readonly hint?: string }[] = [
  { link: /^anon_inode:\[io_uring\]/, what: 'an io_uring instance', hint: 'let the process close its rings first' },
  { link: /^anon_inode:\[perf_event\]/, what: 'a perf event' },
  { link: /^anon_inode:bpf-map/, what: 'a BPF map' },
  { link: /^anon_inode:bpf-prog/, what: 'a BPF program' },
  { link: /^anon_inode:bpf/, what: 'a BPF object' },
  { link: /^anon_inode:\[fanotify\]/, what: 'a fanotify group' },
  { link: /^anon_inode:\[?pidfd\]?|^pidfd:/, what: 'a pidfd', hint: 'let the process close it first' },
  { link: /^anon_inode:\[userfaultfd\]/, what: 'a userfaultfd' },
  { link: /^anon_inode:\[?(seccomp notify|seccomp.*)\]?/, what: 'a seccomp listener' },
  { link: /^anon_inode:\[?(fscontext|fs_context|mount.*)\]?/, what: 'a mount being made' },
  { link: /^anon_inode:kvm/, what: 'a virtual machine' },
  { link: /^anon_inode:\[landlock-ruleset\]/, what: 'a landlock ruleset' },
  { link: /^\/memfd:/, what: 'a memfd of huge pages', hint: 'use transparent huge pages' },
  { link: /^\/dmabuf:/, what: 'a DMA buffer' },
  { link: /^(net|mnt|pid|ipc|uts|user|cgroup|time):\[/, what: 'a namespace', hint: 'let the process close it first' },
];

function objectToKind(file: OpenFile, ctx: EncodeContext): void {
  const link = linkText(file);
  const known = kinds.find((kind) => kind.link.test(link));
  let what = known?.what ?? `a file of a kind that is not carried ("${link}")`;
  if (known === undefined && file.socket !== undefined)
    what = kFamilyNames[file.socket.family] ?? `a socket of family ${file.socket.family}`;
  else if (known === undefined && fileType(file) === kSocketType) what = 'a socket that could not be examined';
  else if (known === undefined && fileType(file) === kBlockDeviceType) what = `the block device "${link}"`;
  else if (known === undefined && file.stat?.filesystemMagic === 0x19800202n) what = `the message queue "${link}"`;
  ctx.object(
    'CAPTURE_FD_UNSUPPORTED',
    `${descriptorPhrase(file, ctx)} is ${what}`,
    ctx.subjectOfFile(file),
    known?.hint,
  );
}
