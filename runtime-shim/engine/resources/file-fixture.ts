// Test support: a capture made by hand, taken through encode, images and
// compile, without privileges.
import { kindOfCode, type ErrorKind } from '../../errors/index.js';
import type { Capture, FdEntry, OpenFile, Socket, Statx, Step, Task } from '../../../nativecore/schema/messages.js';
import type { PartialMessage } from '../../../oci-spec/protobuf/codec.js';
import { CompileContext, type ImageModel, type ImageTask } from '../compile-context.js';
import { EncodeContext } from '../encode-context.js';
import { ImageSetReader } from '../image-set.js';
import type { CompileOptions, EncodeOptions } from '../options.js';
import type { PhaseValue } from '../plan/builder.js';
import { encodeOptions } from '../recorded.js';
import type { Room } from '../room.js';
import { descriptorsRoom } from './descriptors.js';
import { fileLocksRoom } from './file-locks.js';
import { filesRoom } from './files.js';
import { fsRoom } from './fs.js';
import { watchesRoom } from './inotify.js';
import { surroundingRooms } from './surroundings.js';
import { namespaceIds } from './task.js';

const rooms: readonly Room[] = [...surroundingRooms, filesRoom, descriptorsRoom, fsRoom, fileLocksRoom, watchesRoom];
const none = new Uint8Array(0);
const bytes = (text: string): Uint8Array => Buffer.from(text, 'utf8');

export const kOwnDevice = 0xfe00000n;
const kinds = ['pid', 'net', 'ipc', 'uts', 'mnt', 'user', 'cgroup', 'time'] as const;

export function statx(fields: Partial<Statx>): Statx {
  return {
    device: kOwnDevice,
    inode: 1n,
    mode: 0o100644,
    uid: 0,
    gid: 0,
    sizeBytes: 0n,
    rdev: 0n,
    linkCount: 1,
    blocks: 0n,
    mountId: 20n,
    filesystemMagic: 0xef53n,
    mtimeNs: 0n,
    ...fields,
  };
}

export interface FileFields extends Partial<Omit<OpenFile, 'stat' | 'link' | 'fdinfo' | 'socket'>> {
  readonly link: string;
  readonly fdinfo?: string;
  readonly stat?: Partial<Statx>;
  readonly socket?: Partial<Socket>;
}

export interface TaskFields {
  readonly nsPid: number;
  readonly parent?: number;
  readonly comm?: string;
  /** fd -> index of the open file. */
  readonly fds?: Readonly<Record<number, number>>;
  readonly closeOnExec?: readonly number[];
  /** Shares the descriptor table of this task. */
  readonly tableOf?: number;
  readonly cwd?: string;
  readonly root?: string;
  readonly umask?: string;
  readonly cgroup?: string;
  readonly namespaces?: Partial<Record<(typeof kinds)[number], bigint>>;
}

/** Host pids are namespace pids plus this. */
export const kHostPidOffset = 1000;

export class FileFixture {
  readonly openFiles: OpenFile[] = [];
  readonly tasks: Task[] = [];
  readonly parts: Partial<Capture> = {};
  /** Namespaces of the tree that are not the engine's. */
  readonly newNamespaces = new Set<string>();

  constructor(parts: Partial<Capture> = {}) {
    this.parts = parts;
  }

  /** Adds an open file description; the result is its index. */
  open(fields: FileFields): number {
    const { link, fdinfo, stat, socket, ...rest } = fields;
    this.openFiles.push({
      hostPid: 1 + kHostPidOffset,
      fd: -1,
      pathMatches: link.startsWith('/'),
      statusFlags: 2,
      signal: 0,
      owner: none,
      ownerUids: [],
      terminal: undefined,
      watchedFiles: [],
      unreadBytes: 0,
      ...rest,
      link: bytes(link),
      fdinfo: bytes(fdinfo ?? 'pos:\t0\nflags:\t0100002\nmnt_id:\t20\n'),
      stat: statx(stat ?? {}),
      socket: socket === undefined ? undefined : { ...emptySocket, ...socket },
    });
    return this.openFiles.length - 1;
  }

  task(fields: TaskFields): void {
    const hostPid = fields.nsPid + kHostPidOffset;
    const parent = fields.parent === undefined ? 0 : fields.parent + kHostPidOffset;
    const fds = Object.entries(fields.fds ?? {}).map(([fd, openFile]): FdEntry => {
      const file = this.openFiles[openFile];
      if (file !== undefined && file.fd < 0) this.openFiles[openFile] = { ...file, hostPid, fd: Number(fd) };
      return { fd: Number(fd), openFile, closeOnExec: fields.closeOnExec?.includes(Number(fd)) ?? false };
    });
    const directory = (path: string): Task['cwd'] => ({
      link: bytes(path),
      stat: statx({ mode: 0o40755, inode: BigInt(100 + path.length) }),
      pathMatches: true,
    });
    this.tasks.push({
      ...emptyTask,
      hostPid,
      parentHostPid: parent,
      nsPids: [hostPid, fields.nsPid],
      stat: bytes(`${hostPid} (${fields.comm ?? 'target'}) S ${parent} 1 1 0`),
      status: bytes(`Name:\t${fields.comm ?? 'target'}\nUmask:\t${fields.umask ?? '0022'}\n`),
      cgroup: bytes(fields.cgroup ?? '0::/c\n'),
      cwd: directory(fields.cwd ?? '/'),
      root: directory(fields.root ?? '/'),
      fds,
      fdTableHostPid: fields.tableOf === undefined ? hostPid : fields.tableOf + kHostPidOffset,
      namespaces: kinds.map((kind, index) => ({
        kind,
        inode: fields.namespaces?.[kind] ?? BigInt(this.newNamespaces.has(kind) ? 200 + index : 100 + index),
        device: 4n,
      })),
    });
  }

  encode(options: Partial<EncodeOptions> = {}): EncodeContext {
    const ownNamespaces = kinds.map((kind, index) => ({ kind, inode: BigInt(100 + index), device: 4n }));
    const capture: Capture = {
      ...emptyCapture,
      host: { ...emptyHost, ownNamespaces, ownCgroup: bytes('0::/\n') },
      tasks: this.tasks,
      openFiles: this.openFiles,
      ...this.parts,
    };
    const ctx = new EncodeContext(capture, { ...encodeOptions, ...options });
    for (const room of rooms) room.encode?.(ctx);
    return ctx;
  }

  /** The images as a restore reads them, or as somebody changed them before. */
  model(ctx: EncodeContext, change: (files: Map<string, Uint8Array>) => void = () => undefined): ImageModel {
    const files = new Map(ctx.images.files().map((file) => [file.name, file.bytes]));
    change(files);
    const set = new ImageSetReader({
      list: () => [...files.keys()],
      read: (name) => files.get(name),
      sizeBytes: (name) => files.get(name)?.length,
    });
    const tasks = ctx.tasks.map((task): ImageTask => {
      const own = task.index + 2;
      const ids = {
        vm_id: own,
        files_id: ctx.filesId(task),
        fs_id: own,
        sighand_id: own,
        ...namespaceIds(ctx, task.raw.namespaces),
      };
      return {
        pid: task.nsPid,
        entry: { pid: task.nsPid, ppid: task.parentNsPid, pgid: 1, sid: 1, threads: [task.nsPid] },
        core: ctx.draft(task).core,
        zombie: false,
        ids,
        mm: undefined,
        fs: set.maybe('fs', task.nsPid),
        fds: set.messages('fdinfo', ids.files_id),
        threads: new Map(),
      };
    });
    const ownIds = { vm_id: 1, files_id: 1, fs_id: 1, sighand_id: 1 };
    return {
      set,
      inventory: {
        img_version: 2,
        root_ids: { ...ownIds, ...namespaceIds(ctx, ctx.capture.host?.ownNamespaces ?? []) },
      },
      tasks,
      files: new Map(set.messages('files').map((file) => [file.id, file])),
      digest: '',
    };
  }

  compile(options: Partial<CompileOptions> = {}, model = this.model(this.encode())): CompileContext {
    const ctx = new CompileContext(model, { ...compileOptions, ...options });
    for (const image of model.tasks) {
      const parent = ctx.tasks.get(image.entry.ppid);
      const builder = ctx.plan.addTask('process', parent?.builder.index ?? 0, [image.pid], `pstree[${image.pid}]`);
      ctx.tasks.set(image.pid, { image, builder, threads: new Map() });
    }
    for (const room of rooms) room.compile?.(ctx);
    return ctx;
  }
}

/** What a task does in a phase, one line a step: "dup3 f0 5 0". */
export function stepsOf(ctx: CompileContext, pid: number, phase: PhaseValue): string[] {
  const message = ctx.tasks.get(pid)?.builder.message();
  const steps = message?.phases?.find((candidate) => candidate?.phase === phase)?.steps ?? [];
  return steps.map((step) => `${step?.op} ${(step?.args ?? []).map((arg) => argText(ctx, arg)).join(' ')}`.trim());
}

function argText(ctx: CompileContext, arg: PartialMessage<NonNullable<Step['args']>[number]> | undefined): string {
  if (arg?.immediate !== undefined) return `${BigInt.asIntN(64, BigInt(arg.immediate))}`;
  if (arg?.slot !== undefined) return `s${arg.slot}`;
  if (arg?.blob !== undefined) {
    const blob = ctx.plan.message('').blobs?.[arg.blob];
    const data = Buffer.from((blob?.data ?? none) as Uint8Array);
    const isText =
      data.length > 0 && data.at(-1) === 0 && data.subarray(0, -1).every((byte) => byte >= 0x20 && byte < 0x7f);
    return isText ? JSON.stringify(data.toString('latin1', 0, data.length - 1)) : `<${data.toString('hex')}>`;
  }
  return '?';
}

/** The sentences of all objections, without the common beginning. */
export function objectionsOf(ctx: EncodeContext | CompileContext): string[] {
  return ctx.objections.map((objection) => objection.message.replace(/^cannot (checkpoint|restore): /, ''));
}

export function objectionKinds(ctx: EncodeContext | CompileContext): ErrorKind[] {
  return ctx.objections.map((objection) => kindOfCode(objection.code));
}

const emptySocket: Socket = {
  inode: 0n,
  family: 0,
  type: 0,
  protocol: 0,
  localAddress: none,
  peerAddress: none,
  options: [],
  queue: [],
  queueHasRights: false,
  netNamespace: 101n,
  inputBytes: 0,
  outputBytes: 0,
  tcpInfo: none,
};

const emptyTask = {
  hostPid: 0,
  parentHostPid: 0,
  nsPids: [],
  zombie: false,
  fds: [],
  threads: [],
  mappedFiles: [],
  uidMap: bytes('0 0 4294967295\n'),
  gidMap: bytes('0 0 4294967295\n'),
} as unknown as Task;

const emptyHost = { ownNamespaces: [], ownCgroup: none } as unknown as NonNullable<Capture['host']>;

const emptyCapture = {
  version: 1,
  tasks: [],
  openFiles: [],
  pipes: [],
  mountNamespaces: [],
  netNamespaces: [],
  utsNamespaces: [],
  ipcNamespaces: [],
  strangers: [],
  seccompFilters: [],
  sharedMemory: [],
  deletedFiles: [],
  procLocks: none,
  timings: [],
  log: [],
  notes: [],
  wasPaused: false,
} as unknown as Capture;

const compileOptions: CompileOptions = {
  rootfs: '/rootfs',
  yardDirectory: '/yard',
  externalMounts: new Map(),
  inherited: new Map(),
  joinNamespaces: new Map(),
  emptyNetNamespace: false,
  shellJob: false,
  tcp: 'fail',
  kernel: {
    pageSize: 4096n,
    vdsoSpanBytes: 0n,
    vdsoOffsetBytes: 0n,
    vdsoDigest: '',
    userfaultfd: false,
    xsaveSizeBytes: 0,
    mmapMinAddress: 65536n,
  },
};
