// What is in an image set, as data: process tree, memory by kind, files,
// mounts, namespaces, sizes. Rendering is somebody else's business.
import { fd_types } from '../../oci-spec/images/messages.js';
import type { ImageModel, ImageTask } from './compile-context.js';
import { deletedFileImageName, deletedFilesOf } from './resources/deleted-file.js';
import { kPageBytes, mapFlag, vmaStatus } from './resources/mapping-flags.js';
import { savedPages } from './resources/page-map.js';
import { taskState } from './resources/task.js';

export interface ImageDescription {
  readonly digest: string;
  readonly rootPid: number;
  readonly processes: readonly ProcessDescription[];
  readonly memory: readonly MemoryKind[];
  readonly pages: {
    readonly count: bigint;
    readonly bytes: bigint;
    /** In the images of earlier checkpoints. */
    readonly ofParentsBytes: bigint;
  };
  readonly files: readonly FileDescription[];
  readonly mounts: readonly MountDescription[];
  readonly namespaces: Readonly<Record<string, 'own' | 'shared' | 'unknown'>>;
  readonly images: readonly { readonly name: string; readonly bytes: number }[];
  readonly totalBytes: number;
}

export interface ProcessDescription {
  readonly pid: number;
  readonly ppid: number;
  readonly pgid: number;
  readonly sid: number;
  readonly comm: string;
  readonly state: 'running' | 'stopped' | 'zombie';
  readonly threads: number;
  readonly exe: string | undefined;
  readonly cwd: string | undefined;
  readonly uid: number | undefined;
  readonly gid: number | undefined;
  readonly capabilities: bigint;
  readonly seccomp: boolean;
  readonly descriptors: readonly { readonly fd: number; readonly file: number; readonly closeOnExec: boolean }[];
  readonly mappings: number;
  readonly mappedBytes: bigint;
  readonly savedBytes: bigint;
}

export interface MemoryKind {
  readonly kind: 'anonymous' | 'heap' | 'stack' | 'private file' | 'shared file' | 'shared memory' | 'kernel' | 'other';
  readonly mappings: number;
  readonly bytes: bigint;
}

export interface FileDescription {
  readonly id: number;
  readonly kind: string;
  readonly path: string | undefined;
  /** Of a deleted file: what its content is in, and how large that is. */
  readonly content?: { readonly image: string; readonly bytes: number };
}

export interface MountDescription {
  readonly id: number;
  readonly parent: number;
  readonly mountPoint: string;
  readonly source: string;
  readonly external: string | undefined;
}

const kNothingSaved = { bytes: 0n, ofParents: 0n };

export function describeImages(model: ImageModel): ImageDescription {
  const saved = model.tasks.map(({ zombie, pid }) => (zombie ? kNothingSaved : savedPages(model.set, pid)));
  const processes = model.tasks.map((task, index) => describeTask(model, task, saved[index]?.bytes ?? 0n));
  const bytes = saved.reduce((sum, task) => sum + task.bytes, 0n);
  const deleted = deletedFilesOf(model.set).images;
  const images = [...model.set.list()].sort().map((name) => ({ name, bytes: model.set.sizeBytes(name) ?? 0 }));
  return {
    digest: model.digest,
    rootPid: model.tasks[0]?.pid ?? 0,
    processes,
    memory: describeMemory(model),
    pages: {
      count: bytes / kPageBytes,
      bytes,
      ofParentsBytes: saved.reduce((sum, task) => sum + task.ofParents, 0n),
    },
    files: [...model.files.values()].map((file) => ({
      id: file.id,
      kind: nameOf(file.type),
      path: file.reg?.name ?? (file.usk === undefined ? undefined : socketName(file.usk.name)),
      ...contentOf(model, deleted.get(file.id)),
    })),
    mounts: describeMounts(model),
    namespaces: describeNamespaces(model),
    images,
    totalBytes: images.reduce((sum, image) => sum + image.bytes, 0),
  };
}

function contentOf(model: ImageModel, id: number | undefined): Pick<FileDescription, 'content'> {
  if (id === undefined) return {};
  const image = deletedFileImageName(id);
  return { content: { image, bytes: model.set.sizeBytes(image) ?? 0 } };
}

function nameOf(type: number): string {
  const found = Object.entries(fd_types).find(([, value]) => value === type);
  return found === undefined ? `type ${type}` : found[0].toLowerCase();
}

function socketName(name: Uint8Array): string | undefined {
  return name.length === 0 ? undefined : Buffer.from(name).toString('utf8').replaceAll('\0', '@');
}

function describeTask(model: ImageModel, task: ImageTask, savedBytes: bigint): ProcessDescription {
  const { core, mm } = task;
  const creds = core.thread_core?.creds;
  const path = (id: number | undefined): string | undefined =>
    id === undefined ? undefined : model.files.get(id)?.reg?.name;
  const vmas = mm?.vmas ?? [];
  const seccomp = [...task.threads.values()].some((thread) => (thread.thread_core?.seccomp_mode ?? 0) !== 0);
  return {
    pid: task.pid,
    ppid: task.entry.ppid,
    pgid: task.entry.pgid,
    sid: task.entry.sid,
    comm: core.tc?.comm ?? '',
    state: task.zombie ? 'zombie' : core.tc?.task_state === taskState.stopped ? 'stopped' : 'running',
    threads: task.threads.size,
    exe: path(mm?.exe_file_id),
    cwd: path(task.fs?.cwd_id),
    uid: creds?.uid,
    gid: creds?.gid,
    capabilities: BigInt(creds?.cap_eff[0] ?? 0) | (BigInt(creds?.cap_eff[1] ?? 0) << 32n),
    seccomp,
    descriptors: task.fds.map((entry) => ({ fd: entry.fd, file: entry.id, closeOnExec: (entry.flags & 1) !== 0 })),
    mappings: vmas.length,
    mappedBytes: vmas.reduce((sum, vma) => sum + (vma.end - vma.start), 0n),
    savedBytes,
  };
}

function describeMemory(model: ImageModel): MemoryKind[] {
  const kinds = new Map<MemoryKind['kind'], { mappings: number; bytes: bigint }>();
  for (const vma of model.tasks.flatMap((task) => task.mm?.vmas ?? [])) {
    const kind = kindOf(vma.status, vma.flags);
    const sum = kinds.get(kind) ?? { mappings: 0, bytes: 0n };
    kinds.set(kind, { mappings: sum.mappings + 1, bytes: sum.bytes + (vma.end - vma.start) });
  }
  return [...kinds].map(([kind, sum]) => ({ kind, ...sum }));
}

function kindOf(status: number, flags: number): MemoryKind['kind'] {
  if ((status & (vmaStatus.VDSO | vmaStatus.VVAR | vmaStatus.VSYSCALL | vmaStatus.UPROBES)) !== 0) return 'kernel';
  if ((status & vmaStatus.HEAP) !== 0) return 'heap';
  if ((flags & mapFlag.GROWSDOWN) !== 0) return 'stack';
  if ((status & (vmaStatus.ANON_SHARED | vmaStatus.MEMFD | vmaStatus.SYSVIPC)) !== 0) return 'shared memory';
  if ((status & vmaStatus.FILE_PRIVATE) !== 0) return 'private file';
  if ((status & vmaStatus.FILE_SHARED) !== 0) return 'shared file';
  if ((status & vmaStatus.ANON_PRIVATE) !== 0) return 'anonymous';
  return 'other';
}

function describeMounts(model: ImageModel): MountDescription[] {
  const id = model.tasks[0]?.ids?.mnt_ns_id;
  if (id === undefined) return [];
  return model.set.messages('mountpoints', id).map((mount) => ({
    id: mount.mnt_id,
    parent: mount.parent_mnt_id,
    mountPoint: mount.mountpoint,
    source: mount.source,
    external: mount.ext_key,
  }));
}

function describeNamespaces(model: ImageModel): ImageDescription['namespaces'] {
  const ids = model.tasks[0]?.ids;
  const outside = model.inventory.root_ids;
  const kinds = ['pid', 'net', 'ipc', 'uts', 'mnt', 'user', 'cgroup', 'time'] as const;
  return Object.fromEntries(
    kinds.map((kind) => {
      const own = ids?.[`${kind}_ns_id`];
      if (own === undefined) return [kind, 'unknown'];
      return [kind, own === outside?.[`${kind}_ns_id`] ? 'shared' : 'own'];
    }),
  );
}
