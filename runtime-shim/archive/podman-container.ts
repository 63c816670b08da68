// A container as podman keeps it: libpod's ContainerConfig (config.dump) and the
// spec that it starts from (spec.dump), made of what other managers say of theirs.
// podman container restore makes a container anew from these two: the root file
// system from an image that it has or pulls, a network, /dev/shm, the files in /etc
// that it writes itself, a cgroup. What of the spec speaks of the old machine goes.
import { createHash } from 'node:crypto';
import { constants } from 'node:os';
import { kManagerAnnotation, kNameAnnotation, member, type ConfigDump } from '../../oci-spec/checkpoint-archive.js';
import { FormatError, JsonReader, parseJson, stringifyJson } from '../../oci-spec/json.js';
import { isBindMount } from '../../oci-spec/mount-options.js';
import { normalize } from '../../oci-spec/paths.js';
import { parseRuntimeConfig, type RuntimeConfig, type SpecMount } from '../../oci-spec/runtime-config.js';
import { StasisError } from '../errors/index.js';
import { corrupt } from './tar-reader.js';

/** What the source cannot say, or is not to say; undefined: what it says, or what podman takes by default. */
export interface PodmanWishes {
  readonly name: string | undefined;
  readonly image: string | undefined;
  /** 64 digits. */
  readonly imageId: string | undefined;
  /** As --runtime of podman is given, or containers.conf names it. */
  readonly runtime: string | undefined;
  readonly network: string | undefined;
}

export interface PodmanContainer {
  readonly config: string;
  readonly spec: string;
  /** One sentence each: what podman will not have of the old container, or wants to be there. */
  readonly notes: readonly string[];
}

const kDefaultRuntime = 'stasis';
const kDefaultNetwork = 'podman';
const kDefaultShmBytes = 65_536_000;
const kDefaultStopSignal = constants.signals.SIGTERM;

/** libpod takes these out of an imported spec, and mounts its own there. */
const ownMounts: ReadonlySet<string> = new Set([
  '/dev/shm',
  '/etc/hostname',
  '/etc/hosts',
  '/etc/resolv.conf',
  '/run/.containerenv',
  '/run/secrets',
  '/var/run/.containerenv',
  '/var/run/secrets',
]);

export interface PodmanSource {
  readonly path: string;
  /** The content of a /dev/shm that was its manager's. */
  readonly hasDevShm: boolean;
}

/** Throws ARCHIVE_UNSUPPORTED where podman cannot make such a container, ARCHIVE_CORRUPT where the spec is none. */
export function podmanContainer(
  config: ConfigDump,
  specText: string,
  source: PodmanSource,
  wishes: PodmanWishes,
): PodmanContainer {
  try {
    return convert(config, specText, source, wishes);
  } catch (error) {
    throw error instanceof FormatError ? corrupt(source.path, `${member.spec}: ${error.message}`) : error;
  }
}

function convert(config: ConfigDump, specText: string, source: PodmanSource, wishes: PodmanWishes): PodmanContainer {
  const spec = parseRuntimeConfig(specText);
  const refuse = (problem: string, hint: string): never => {
    throw new StasisError({
      code: 'ARCHIVE_UNSUPPORTED',
      message: `cannot pack ${source.path} for podman: ${problem}`,
      subject: { path: source.path },
      hint,
    });
  };
  for (const { type, path } of spec.linux?.namespaces ?? []) {
    if (type === 'user')
      refuse(
        "its user namespace is not the host's, and the owners of files in podman's storage are not translated",
        'restore it with stasis restore --archive',
      );
    if (type === 'pid' && path !== '')
      refuse(
        'it shares the pid namespace of another container, which podman gives to none outside of a pod',
        'restore it with stasis restore --archive',
      );
  }
  const name = wishes.name ?? (config.name === '' ? config.id : config.name);
  if (!/^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/.test(name)) {
    const problem = name === '' ? 'the source says no name' : `${JSON.stringify(name)} is no name for podman`;
    refuse(problem, 'name the container with --name');
  }
  const image = baseImage(config, wishes);
  if (!hasRegistry(image.name)) {
    refuse(
      image.name === ''
        ? 'podman makes the root file system from an image, and the source says none'
        : `${JSON.stringify(image.name)} is no full name of an image, and podman looks for it nowhere else`,
      'name the image with --image, as "podman images" prints it: localhost/web:latest',
    );
  }
  const network = networkOf(spec);
  if (wishes.network !== undefined && network !== 'joined') {
    const what = network === 'host' ? "it has the host's network" : 'its network is a namespace that nobody else is in';
    refuse(`it cannot join ${wishes.network}: ${what}`, 'leave --network out');
  }
  const joined = wishes.network ?? kDefaultNetwork;
  const notes = [
    "podman's own settings are its defaults, as no spec has them: restart policy, health check, published ports, named volumes, secrets",
  ];
  if (wishes.runtime === undefined)
    notes.push(
      `podman restores it by the runtime "${kDefaultRuntime}", as containers.conf has to name it; --runtime names another`,
    );
  if (imageIdOf(image.id) === undefined) notes.push(kNoImageId);
  if (network === 'joined')
    notes.push(
      `the network namespace that it had joined is replaced by podman's network "${joined}", where it has another address; --network names another`,
    );
  notes.push(...specNotes(spec, network, source.hasDevShm));
  const document = {
    // Of ContainerConfig, "spec" is replaced by spec.dump.
    spec: null,
    id: idOf(config, name),
    name,
    lockID: 0,
    RawImageName: image.name,
    idMappingsOptions: { HostUIDMapping: true, HostGIDMapping: true, UIDMap: null, GIDMap: null },
    Dependencies: null,
    rootfsImageID: image.id,
    rootfsImageName: image.name,
    shmSize: shmBytes(spec.mounts),
    // Directories of the machine that restores: set there.
    staticDir: '',
    secretsPath: '',
    storageOpts: null,
    privileged: false,
    ...userOf(spec),
    createNetNS: network === 'joined',
    UseImageResolvConf: false,
    UseImageHosts: false,
    ...(network === 'joined' ? { newNetworks: { [joined]: { interface_name: 'eth0' } }, networkMode: 'bridge' } : {}),
    ...(network === 'host' ? { networkMode: 'host' } : {}),
    command: spec.process?.args ?? [],
    labels: labelsOf(spec),
    stopSignal: stopSignalOf(spec),
    stopTimeout: 10,
    createdTime: config.createdTime || '0001-01-01T00:00:00Z',
    // Both are set by the cgroup manager of the machine that restores.
    cgroupsMode: 'enabled',
    cgroupParent: '',
    logPath: '',
    logTag: '',
    logSize: 0,
    logDriver: 'k8s-file',
    postConfigureNetNS: false,
    runtime: wishes.runtime ?? kDefaultRuntime,
    pause: false,
    isService: false,
    sdnotifyMode: 'container',
    healthcheck: null,
    mountAllDevices: false,
    // For CRI-O, containerd and checkpointctl; libpod passes over them.
    rootfsImage: config.rootfsImage || image.name,
    rootfsImageRef: image.id,
    checkpointedTime: config.checkpointedTime,
  };
  return { config: JSON.stringify(document, undefined, 2), spec: podmanSpec(specText), notes };
}

/** podman's own container under another name, image or runtime. */
export function alterPodmanConfig(
  text: string,
  wishes: PodmanWishes,
): { readonly config: string; readonly notes: readonly string[] } {
  const document = parseJson(text) as Record<string, unknown>;
  const set = (key: string, value: string | undefined): void => {
    if (value !== undefined) document[key] = value;
  };
  set('name', wishes.name);
  set('runtime', wishes.runtime);
  set('RawImageName', wishes.image);
  set('rootfsImageName', wishes.image);
  set('rootfsImageID', wishes.imageId ?? wishes.image);
  const isUnknown = wishes.image !== undefined && wishes.imageId === undefined;
  return { config: stringifyJson(document), notes: isUnknown ? [kNoImageId] : [] };
}

/** podman pulls it by its name if it is missing, and takes it by its id. */
function baseImage(config: ConfigDump, wishes: PodmanWishes): { readonly name: string; readonly id: string } {
  const name = wishes.image ?? (config.rootfsImageName || config.rootfsImage);
  const id = wishes.imageId ?? (wishes.image === undefined ? imageIdOf(config.rootfsImageRef) : undefined);
  if (id !== undefined) return { name, id };
  // A digest means the image that it was, a tag may have moved on.
  const isPinned = wishes.image === undefined && /@sha256:[0-9a-f]{64}$/.test(config.rootfsImageRef);
  const reference = isPinned ? config.rootfsImageRef : name;
  return { name: reference, id: reference };
}

function imageIdOf(text: string): string | undefined {
  return /^(?:sha256:)?([0-9a-f]{64})$/.exec(text)?.[1];
}

const kNoImageId =
  'podman 5 finds the image by its id, which is not known: give it with --image-id; podman 4 takes the name as well';

/** Others are completed to docker.io/library/NAME in one place of podman, and to localhost/NAME in another. */
function hasRegistry(name: string): boolean {
  const [first, ...rest] = name.split('/');
  return rest.length > 0 && (first === 'localhost' || /[.:]/.test(first!));
}

/** 64 digits, the same for the same checkpoint. */
function idOf(config: ConfigDump, name: string): string {
  if (/^[0-9a-f]{64}$/.test(config.id)) return config.id;
  return createHash('sha256').update(`${config.id}\n${name}\n${config.createdTime}`).digest('hex');
}

type Network = 'host' | 'own' | 'joined';

function networkOf(spec: RuntimeConfig): Network {
  const namespace = spec.linux?.namespaces.find(({ type }) => type === 'network');
  if (namespace === undefined) return 'host';
  return namespace.path === '' ? 'own' : 'joined';
}

function userOf(spec: RuntimeConfig): { readonly user?: string; readonly groups?: readonly string[] } {
  const { uid = 0, gid = 0, additionalGids = [] } = spec.process ?? {};
  return {
    ...(uid === 0 && gid === 0 ? {} : { user: `${uid}:${gid}` }),
    ...(additionalGids.length === 0 ? {} : { groups: additionalGids.map(String) }),
  };
}

function labelsOf(spec: RuntimeConfig): Record<string, string> {
  const text = spec.annotations['io.kubernetes.cri-o.Labels'];
  return text === undefined ? {} : new JsonReader(parseJson(text)).stringMap();
}

function stopSignalOf(spec: RuntimeConfig): number {
  const text = spec.annotations['org.opencontainers.image.stopSignal'] ?? '';
  if (/^\d{1,2}$/.test(text)) return Number(text);
  const known: Readonly<Record<string, number>> = constants.signals;
  return known[text] ?? known[`SIG${text}`] ?? kDefaultStopSignal;
}

function shmBytes(mounts: readonly SpecMount[]): number {
  const options = mounts.find(({ destination }) => normalize(destination) === '/dev/shm')?.options ?? [];
  const [, digits, unit = ''] =
    /^size=(\d+)([kmg]?)$/i.exec(options.find((one) => one.startsWith('size=')) ?? '') ?? [];
  return digits === undefined ? kDefaultShmBytes : Number(digits) * 1024 ** ' kmg'.indexOf(unit.toLowerCase() || ' ');
}

/** docker's hook that configures the network asks docker's daemon; podman configures its own. */
function isDockerHook(hook: unknown): boolean {
  const args = (hook as { args?: unknown }).args;
  return Array.isArray(args) && args[0] === 'libnetwork-setkey';
}

function isOwnMount(mount: { readonly destination: string }): boolean {
  return ownMounts.has(normalize(mount.destination));
}

interface OpenSpec {
  root?: object;
  hooks?: Record<string, unknown[]>;
  mounts?: { destination: string; options?: string[] }[];
  annotations?: Record<string, string>;
  linux?: { cgroupsPath?: string; namespaces?: { type: string; path?: string }[] };
}

/** Everything else of the spec stays, as it grants and limits what the images ask for. */
function podmanSpec(text: string): string {
  const spec = parseJson(text) as OpenSpec;
  const annotations = { ...spec.annotations };
  delete annotations[kNameAnnotation];
  annotations[kManagerAnnotation] = 'libpod';
  const { cgroupsPath: _, ...linux } = spec.linux ?? {};
  const hooks = Object.entries(spec.hooks ?? {}).map(
    ([when, list]) => [when, (list ?? []).filter((hook) => !isDockerHook(hook))] as const,
  );
  return stringifyJson({
    ...spec,
    root: { ...spec.root, path: 'rootfs' },
    mounts: (spec.mounts ?? []).filter((mount) => !isOwnMount(mount) || !isBindMount(mount.options ?? [])),
    annotations,
    ...(spec.hooks === undefined ? {} : { hooks: Object.fromEntries(hooks) }),
    linux: { ...linux, namespaces: (linux.namespaces ?? []).map(({ type }) => ({ type })) },
  });
}

function specNotes(spec: RuntimeConfig, network: Network, hasDevShm: boolean): string[] {
  const notes: string[] = [];
  const joined = (spec.linux?.namespaces ?? []).filter(({ type, path }) => path !== '' && type !== 'network');
  if (joined.length > 0)
    notes.push(
      `it gets namespaces of its own in place of those that it shared: ${joined.map(({ type }) => type).join(', ')}`,
    );
  const binds = spec.mounts.filter(({ options }) => isBindMount(options));
  const own = binds.filter(isOwnMount).map(({ destination }) => normalize(destination));
  if (own.includes('/dev/shm') && !hasDevShm)
    notes.push('/dev/shm is empty: it was another mount of its manager, whose content is not in the source');
  const others = own.filter((path) => path.startsWith('/etc/'));
  if (others.length > 0) notes.push(`podman writes its own ${others.join(', ')}`);
  if (network === 'own' && own.includes('/etc/resolv.conf'))
    notes.push(
      'podman has no /etc/resolv.conf for a container without a network, and the restore will refuse for want of it',
    );
  const sources = binds.filter((mount) => !isOwnMount(mount));
  if (sources.length > 0) {
    const list = sources.map(({ source, destination }) => `${source} (for ${destination})`);
    notes.push(`these have to be on the machine that restores: ${list.join(', ')}`);
  }
  const programs = [...spec.hooks.values()].flat().filter((hook) => !isDockerHook(hook));
  if (programs.length > 0)
    notes.push(`its hooks are run there as well: ${[...new Set(programs.map(({ path }) => path))].join(', ')}`);
  return notes;
}
