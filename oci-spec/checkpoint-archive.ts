// Checkpoints on their way between machines: the members of the tar files that
// podman, CRI-O, containerd and checkpointctl read, and the annotations by which
// each of them recognises an image as a checkpoint. Names and forms, no I/O.
import { kAccessList, kDefaultList } from './access-control-list.js';
import { FormatError, JsonReader, parseJson } from './json.js';

/** Who writes or reads an archive; `stasis` has the members of all of them. */
export type Dialect = 'stasis' | 'podman' | 'cri-o' | 'containerd';
export const dialects: readonly Dialect[] = ['stasis', 'podman', 'cri-o', 'containerd'];

export const member = {
  /** Digests of all the others; the last one. */
  manifest: 'stasis-archive.json',
  config: 'config.dump',
  spec: 'spec.dump',
  images: 'checkpoint',
  preImages: 'pre-checkpoint',
  stats: 'stats-dump',
  dumpLog: 'dump.log',
  rootfsDiff: 'rootfs-diff.tar',
  deletedFiles: 'deleted.files',
  bindMounts: 'bind.mounts',
  networkStatus: 'network.status',
  devShm: 'devshm-checkpoint.tar',
  podmanLog: 'ctr.log',
  crioLog: 'io.kubernetes.cri-o.LogPath',
  containerdLog: 'container.log',
  containerdStatus: 'status',
  containerdStatusDump: 'status.dump',
  podOptions: 'pod.options',
  podDump: 'pod.dump',
  volumes: 'volumes',
  artifacts: 'artifacts',
} as const;

const common: readonly string[] = [member.config, member.spec, member.stats, member.rootfsDiff];

/** Members at the top of an archive that a dialect's reader has a use for, beside the images. */
export const membersOf: Readonly<Record<Dialect, ReadonlySet<string>>> = {
  stasis: new Set(Object.values(member)),
  podman: new Set([
    ...common,
    member.deletedFiles,
    member.networkStatus,
    member.devShm,
    member.podmanLog,
    member.podOptions,
    member.podDump,
    member.volumes,
    member.artifacts,
  ]),
  'cri-o': new Set([
    ...common,
    member.dumpLog,
    member.deletedFiles,
    member.bindMounts,
    member.crioLog,
    member.devShm,
    member.podOptions,
    member.podDump,
    member.artifacts,
  ]),
  containerd: new Set([
    ...common,
    member.dumpLog,
    member.containerdLog,
    member.containerdStatus,
    member.containerdStatusDump,
  ]),
};

/** The container's log under each dialect's name. */
export const logMembers: Readonly<Partial<Record<Dialect, string>>> = {
  podman: member.podmanLog,
  'cri-o': member.crioLog,
  containerd: member.containerdLog,
};

/** What checkpointctl shows and every manager reads first. */
export interface ConfigDump {
  readonly id: string;
  readonly name: string;
  /** As the user asked for it. */
  readonly rootfsImage: string;
  /** 64 hexadecimal digits, or a reference with a digest. */
  readonly rootfsImageRef: string;
  readonly rootfsImageName: string;
  readonly runtime: string;
  /** RFC 3339. */
  readonly createdTime: string;
  readonly checkpointedTime: string;
}

/** Throws FormatError. podman's is its whole ContainerConfig, of which this is a part. */
export function parseConfigDump(text: string): ConfigDump {
  const document = new JsonReader(parseJson(text));
  const read = (name: string): string => document.field(name).stringOr('');
  return {
    id: read('id'),
    name: read('name'),
    rootfsImage: read('rootfsImage') || read('RawImageName'),
    rootfsImageRef: read('rootfsImageRef') || read('rootfsImageID'),
    rootfsImageName: read('rootfsImageName'),
    runtime: read('runtime'),
    createdTime: read('createdTime'),
    checkpointedTime: read('checkpointedTime'),
  };
}

/** The form of CRI-O and containerd; Go's zero time says "never". */
export function formatConfigDump(config: ConfigDump): string {
  const never = '0001-01-01T00:00:00Z';
  const document = {
    id: config.id,
    name: config.name,
    rootfsImage: config.rootfsImage,
    rootfsImageRef: config.rootfsImageRef,
    rootfsImageName: config.rootfsImageName,
    runtime: config.runtime,
    createdTime: config.createdTime || never,
    checkpointedTime: config.checkpointedTime || never,
    restoredTime: never,
    restored: false,
  };
  return JSON.stringify(document, undefined, 2);
}

/** podman's own struct has these, and no other dialect's does. */
export function isPodmanConfig(text: string): boolean {
  const document = new JsonReader(parseJson(text));
  return !document.field('rootfsImageID').absent || !document.field('staticDir').absent;
}

export interface BindMount {
  readonly source: string;
  readonly destination: string;
  readonly fileType: 'directory' | 'file';
  readonly permissions: number;
}

export function formatBindMounts(mounts: readonly BindMount[]): string {
  return JSON.stringify(
    mounts.map(({ source, destination, fileType, permissions }) => ({
      source,
      destination,
      file_type: fileType,
      permissions,
    })),
  );
}

/**
 * Of the extended attributes of a file, those that travel in rootfs-diff.tar: what programs noted themselves, access
 * control lists, which give no more than a mode can, and file capabilities, which never give a task more than the
 * bounding set of its container (capabilities(7)). Those of overlayfs say how layers lie upon each other on one machine,
 * and labels are the security module's business.
 */
export function isCarriedAttribute(name: string): boolean {
  if (name.startsWith('user.')) return !name.startsWith('user.overlay.');
  return name === 'security.capability' || name === kAccessList || name === kDefaultList;
}

/** Whose loss is told: not what the machine or its overlayfs gave to the file. */
export function isForeignAttribute(name: string): boolean {
  return /^(trusted|user)\.overlay\./.test(name) || /^security\.(selinux|apparmor|ima|evm)$/.test(name);
}

/** Paths in the container. Throws FormatError. */
export function parseDeletedFiles(text: string): string[] {
  const list = new JsonReader(parseJson(text), 'deleted.files');
  return list.listOr((path) => path.string());
}

/** checkpointctl takes a container without a manager's annotations for containerd's, and shows this as its name. */
export const kNameAnnotation = 'io.kubernetes.cri.container-name';
export const kManagerAnnotation = 'io.container.manager';

/** What an image says of the checkpoint in it. */
export interface ImageFacts {
  readonly config: ConfigDump;
  /** Of the container's spec. */
  readonly specAnnotations: Readonly<Record<string, string>>;
  readonly stasisVersion: string;
  readonly runtimeVersion: string;
  readonly hostArch: string;
  readonly hostKernel: string;
  readonly cgroupVersion: string;
  readonly distribution: { readonly name: string; readonly version: string };
}

/** CRIU's version as a number, of the images' format that we write. */
export const kImageFormatVersion = '40201';

const podman = 'io.podman.annotations.checkpoint';
const crio = 'io.kubernetes.cri-o.annotations.checkpoint';
const criu = 'org.criu.checkpoint';

/** By which podman, CRI-O and containerd tell that an image is a checkpoint. */
export const imageMarks: Readonly<Record<Exclude<Dialect, 'stasis'>, string>> = {
  podman: `${podman}.runtime.name`,
  'cri-o': `${crio}.name`,
  containerd: `${criu}.container.name`,
};

export function imageAnnotations(facts: ImageFacts, wanted: readonly Dialect[]): Record<string, string> {
  const { config, specAnnotations: spec } = facts;
  const all = wanted.includes('stasis');
  return {
    'org.opencontainers.image.created': config.checkpointedTime,
    ...(all || wanted.includes('podman')
      ? {
          [`${podman}.name`]: config.name,
          [`${podman}.rawImageName`]: config.rootfsImage,
          [`${podman}.rootfsImageID`]: config.rootfsImageRef,
          [`${podman}.rootfsImageName`]: config.rootfsImageName,
          [`${podman}.podman.version`]: '',
          [`${podman}.criu.version`]: kImageFormatVersion,
          [imageMarks.podman]: config.runtime,
          [`${podman}.runtime.version`]: facts.runtimeVersion,
          [`${podman}.conmon.version`]: '',
          [`${podman}.host.arch`]: facts.hostArch,
          [`${podman}.host.kernel`]: facts.hostKernel,
          [`${podman}.cgroups.version`]: facts.cgroupVersion,
          [`${podman}.distribution.version`]: facts.distribution.version,
          [`${podman}.distribution.name`]: facts.distribution.name,
        }
      : {}),
    ...(all || wanted.includes('cri-o')
      ? {
          [imageMarks['cri-o']]: config.name,
          [`${crio}.rawImageName`]: config.rootfsImage,
          [`${crio}.rootfsImageID`]: config.rootfsImageRef,
          [`${crio}.rootfsImageName`]: config.rootfsImageName,
          [`${crio}.criu.version`]: kImageFormatVersion,
        }
      : {}),
    ...(all || wanted.includes('containerd')
      ? {
          [`${criu}.engine.name`]: engineName(spec),
          [`${criu}.engine.version`]: facts.stasisVersion,
          [imageMarks.containerd]: spec[kNameAnnotation] ?? config.name,
          [`${criu}.pod.name`]: spec['io.kubernetes.cri.sandbox-name'] ?? spec['io.kubernetes.pod.name'] ?? '',
          [`${criu}.pod.namespace`]:
            spec['io.kubernetes.cri.sandbox-namespace'] ?? spec['io.kubernetes.pod.namespace'] ?? '',
          [`${criu}.rootfsImageUserRequested`]: config.rootfsImage,
          [`${criu}.rootfsImageName`]: config.rootfsImageName,
          [`${criu}.rootfsImageID`]: config.rootfsImageRef,
          [`${criu}.runtime.name`]: config.runtime,
          [`${criu}.runtime.version`]: facts.runtimeVersion,
          [`${criu}.criu.version`]: kImageFormatVersion,
          [`${criu}.host.arch`]: facts.hostArch,
          [`${criu}.host.kernel`]: facts.hostKernel,
          [`${criu}.cgroup.version`]: facts.cgroupVersion,
          [`${criu}.distribution.name`]: facts.distribution.name,
          [`${criu}.distribution.version`]: facts.distribution.version,
        }
      : {}),
  };
}

function engineName(spec: Readonly<Record<string, string>>): string {
  const manager = spec[kManagerAnnotation];
  if (manager === 'libpod') return 'Podman';
  if (manager === 'cri-o') return 'CRI-O';
  return spec[kNameAnnotation] === undefined ? 'stasis' : 'containerd';
}

export function specAnnotations(text: string): Record<string, string> {
  return new JsonReader(parseJson(text)).field('annotations').stringMap();
}

const kMaxNameBytes = 1024;

/** A member's name without "./" and a trailing slash. Throws FormatError for one that no honest archive has. */
export function memberName(raw: string): string {
  const name = raw.replace(/^(\.\/)+/, '').replace(/\/$/, '');
  const refuse = (problem: string): never => {
    throw new FormatError(`member ${JSON.stringify(raw.slice(0, 200))}`, problem);
  };
  if (name === '' || name === '.') return '';
  if (Buffer.byteLength(name) > kMaxNameBytes) refuse(`has a name of more than ${kMaxNameBytes} bytes`);
  // eslint-disable-next-line no-control-regex
  if (/[\u0000-\u001f\u007f\\]/.test(name)) refuse('has a control character or a backslash in its name');
  if (name.includes('\ufffd')) refuse('has a name that is not UTF-8');
  if (name.startsWith('/')) refuse('has an absolute name');
  for (const part of name.split('/')) {
    if (part === '..') refuse('leads out of the archive');
    if (part === '' || part === '.') refuse('has an empty part in its name');
    if (Buffer.byteLength(part) > 255) refuse('has a part of more than 255 bytes in its name');
  }
  return name;
}
