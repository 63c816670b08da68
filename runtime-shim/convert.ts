// Checkpoints from one form into another: archives of podman, CRI-O and
// containerd and our own, OCI images, directories of images (CRIU's, docker's).
// A source is unpacked and checked first; what the new form has no place for is
// said, and never dropped in silence.
//
//   Undo            the private directory beside the output is removed
//   If we die here  it stays, and goes with the next one; the output's name is not there
import {
  constants,
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  rmdirSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { copyFile } from 'node:fs/promises';
import { arch, release } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { nativeBinding } from '../nativecore/index.js';
import {
  dialects,
  formatBindMounts,
  formatConfigDump,
  imageAnnotations,
  isPodmanConfig,
  kManagerAnnotation,
  kNameAnnotation,
  logMembers,
  member,
  membersOf,
  parseConfigDump,
  parseDeletedFiles,
  specAnnotations,
  type ConfigDump,
  type Dialect,
} from '../oci-spec/checkpoint-archive.js';
import { FormatError, parseJson, stringifyJson } from '../oci-spec/json.js';
import { isBindMount } from '../oci-spec/mount-options.js';
import { parseRuntimeConfig } from '../oci-spec/runtime-config.js';
import { ArchiveFile, syncDirectory, syncFile } from './archive/archive-file.js';
import type { Compression } from './archive/compression.js';
import { formatManifest, kManifestName } from './archive/manifest.js';
import { readOciLayout, writeOciLayout } from './archive/oci-image.js';
import { alterPodmanConfig, podmanContainer, type PodmanWishes } from './archive/podman-container.js';
import { PrivateDirectory } from './archive/private-directory.js';
import { dialectOf, readArchive, type ArchiveContents } from './archive/read-archive.js';
import { convertRootfsTar } from './archive/rootfs-tar.js';
import { corrupt } from './archive/tar-reader.js';
import { TarWriter } from './archive/tar-writer.js';
import { readCgroupLayout } from './container/index.js';
import { StasisError, fileError } from './errors/index.js';
import { givingBack, temporaryDirectory } from './archive-output.js';
import { ImageInput } from './image-input.js';

export type SourceForm = Dialect | 'docker' | 'criu' | 'oci';
export type TargetForm = Dialect | 'docker' | 'criu' | 'oci' | 'oci-archive';
export const sourceForms: readonly SourceForm[] = [...dialects, 'docker', 'criu', 'oci'];
export const targetForms: readonly TargetForm[] = [...dialects, 'docker', 'criu', 'oci', 'oci-archive'];

type Progress = (count: number) => void;

/** A checkpoint as files on this machine. */
interface Loaded {
  readonly form: SourceForm;
  readonly container: 'archive' | 'image' | 'directory';
  readonly dialect: Dialect;
  /** Members of an archive, by name. */
  readonly files: ReadonlyMap<string, string>;
  readonly digests: 'all' | 'images' | 'none';
  readonly contentBytes: number;
}

export interface ArchiveDescription {
  /** "archive (podman)" */
  readonly form: string;
  readonly name: string;
  readonly files: number;
  readonly contentBytes: number;
  readonly digests: 'all' | 'images' | 'none';
}

/** Throws when anything is wrong with it. */
export async function describeArchive(path: string, onBytes: Progress): Promise<ArchiveDescription> {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat?.isDirectory() === true) {
    if (existsSync(join(path, 'oci-layout'))) return await describeLayout(path, path, onBytes);
    const loaded = await loadImages(path);
    return {
      form: `directory (${loaded.form})`,
      name: nameOf(textOf(loaded, member.config)),
      files: loaded.files.size,
      contentBytes: loaded.contentBytes,
      digests: loaded.digests,
    };
  }
  const archive = await readArchive(path, { onBytes });
  if (!archive.files.has('oci-layout')) return describeContents(path, `archive (${archive.dialect})`, archive);
  // Its index comes last, and says what the blobs are.
  using work = new PrivateDirectory(temporaryDirectory(), 'verify');
  await readArchive(path, { destination: work.path, onBytes });
  return await describeLayout(path, work.path, onBytes);
}

async function describeLayout(path: string, layout: string, onBytes: Progress): Promise<ArchiveDescription> {
  const image = await readOciLayout(layout, undefined);
  const archive = await readArchive(image.layerFile, { onBytes });
  return { ...describeContents(path, `image (${archive.dialect})`, archive), digests: 'all' };
}

function describeContents(path: string, form: string, archive: ArchiveContents): ArchiveDescription {
  requireInventory(path, archive.files);
  return {
    form,
    name: nameOf(archive.texts.get(member.config)),
    files: archive.files.size,
    contentBytes: archive.contentBytes,
    digests: archive.verified ? 'all' : archive.files.has(`${member.images}/${kManifestName}`) ? 'images' : 'none',
  };
}

function nameOf(config: string | undefined): string {
  return config === undefined ? '' : parseConfigDump(config).name;
}

export interface PackRequest {
  /** Absolute. */
  readonly source: string;
  /** What the source has to be; told by itself if undefined. */
  readonly from: SourceForm | undefined;
  readonly to: TargetForm;
  /** Whose members an OCI image has; undefined: the source's. */
  readonly imageFor: Dialect | undefined;
  /** Absolute. */
  readonly output: string;
  readonly compression: Compression;
  /** Of an image in an OCI layout. */
  readonly tag: string;
  /** Absolute: config.json for sources that have none. */
  readonly spec: string | undefined;
  readonly name: string;
  readonly image: string;
  /** The rest for podman only. */
  readonly imageId: string;
  readonly runtime: string;
  readonly network: string;
  readonly stasisVersion: string;
  /** How much of how much is written; before that, how much has been read, of 0. */
  readonly onProgress: (doneBytes: number, totalBytes: number) => void;
}

export interface PackResult {
  readonly from: SourceForm;
  readonly output: string;
  readonly files: number;
  /** What the new form has no place for, or what its reader will miss. */
  readonly notes: readonly string[];
}

export async function packCheckpoint(request: PackRequest): Promise<PackResult> {
  using work = new PrivateDirectory(dirname(request.output), 'pack');
  const unpacked = join(work.path, 'source');
  mkdirSync(unpacked, { mode: 0o700 });
  let readBytes = 0;
  const onBytes = (count: number): void => request.onProgress((readBytes += count), 0);
  const loaded = await load(request.source, request.tag === '' ? undefined : request.tag, unpacked, onBytes);
  if (request.from !== undefined && !isA(loaded, request.from)) {
    throw new StasisError({
      code: 'ARCHIVE_UNSUPPORTED',
      message: `cannot pack ${request.source}: it is not from ${request.from} but from ${loaded.form}`,
      subject: { path: request.source },
      hint: `leave --from out, or say --from ${loaded.form}`,
    });
  }
  const notes: string[] = [];
  const target = join(work.path, 'target');
  mkdirSync(target, { mode: 0o700 });
  const images = [...loaded.files].filter(([name]) => name.startsWith(`${member.images}/`));
  if (request.to === 'criu' || request.to === 'docker') {
    const rest = [...loaded.files.keys()].filter(
      (name) => !name.startsWith(`${member.images}/`) && name !== member.manifest,
    );
    if (rest.length > 0) notes.push(`a directory of images has no place for ${rest.sort().join(', ')}`);
    await writeDirectory(
      images.map(([name, path]) => [basename(name), path]),
      work.path,
      request.output,
    );
    return { from: loaded.form, output: request.output, files: images.length, notes };
  }
  const dialect =
    request.to === 'oci' || request.to === 'oci-archive' ? (request.imageFor ?? loaded.dialect) : request.to;
  const members = await translate(loaded, dialect, request, target, notes);
  const files = [...members].sort(([one], [other]) => order(one) - order(other) || (one < other ? -1 : 1));
  const fill = async (tar: TarWriter): Promise<void> => {
    await tar.addDirectory({ name: member.images });
    const parents = new Set<string>([member.images]);
    for (const [name, path] of files) {
      if (name.includes('/') && !parents.has(dirname(name))) {
        parents.add(dirname(name));
        await tar.addDirectory({ name: dirname(name) });
      }
      // What was unpacked here is not needed any more once it is in.
      const own = path.startsWith(`${work.path}/`);
      const giveBack = own ? givingBack() : undefined;
      await tar.addFile({ name }, path, {
        writable: own,
        afterPiece: (fd, offset, lengthBytes) => {
          giveBack?.(fd, offset, lengthBytes);
          request.onProgress(tar.writtenBytes, Math.max(loaded.contentBytes, tar.writtenBytes));
        },
      });
      if (own) rmSync(path);
    }
    await tar.addBytes({ name: member.manifest }, formatManifest({ files: tar.entries }));
  };
  if (request.to === 'oci' || request.to === 'oci-archive') {
    const config = parseConfigDump(readFileSync(members.get(member.config)!, 'utf8'));
    const spec = specAnnotations(readFileSync(members.get(member.spec)!, 'utf8'));
    const layout = join(work.path, 'layout');
    mkdirSync(layout, { mode: 0o755 });
    await writeOciLayout(layout, {
      annotations: imageAnnotations(
        { config, specAnnotations: spec, stasisVersion: request.stasisVersion, ...hostFacts() },
        ['stasis'],
      ),
      tag: request.tag,
      architecture: 'amd64',
      created: new Date().toISOString(),
      compression: request.compression === 'none' ? 'gzip' : request.compression,
      fill,
    });
    imageNotes(config, dialect, notes);
    if (request.to === 'oci') await placeDirectory(layout, request.output);
    else await writeTar(request.output, 'none', (tar) => addTree(tar, layout, ''));
  } else {
    await writeTar(request.output, request.compression, fill);
  }
  return { from: loaded.form, output: request.output, files: files.length, notes };
}

export interface UnpackRequest {
  readonly source: string;
  /** Absolute; must not exist, or be an empty directory. */
  readonly output: string;
  readonly imagesOnly: boolean;
  readonly tag: string | undefined;
  readonly maxBytes: number | undefined;
  readonly onBytes: Progress;
}

/** All members below a directory; with imagesOnly, what restore --image-path reads. */
export async function unpackCheckpoint(request: UnpackRequest): Promise<PackResult> {
  using work = new PrivateDirectory(dirname(request.output), 'unpack');
  const loaded = await load(request.source, request.tag, work.path, request.onBytes, request.maxBytes);
  const wanted = [...loaded.files].filter(([name]) => !request.imagesOnly || name.startsWith(`${member.images}/`));
  await writeDirectory(
    wanted.map(([name, path]) => [request.imagesOnly ? basename(name) : name, path]),
    work.path,
    request.output,
  );
  return { from: loaded.form, output: request.output, files: wanted.length, notes: [] };
}

async function load(
  path: string,
  tag: string | undefined,
  work: string,
  onBytes: Progress,
  maxBytes?: number,
): Promise<Loaded> {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat?.isDirectory() !== true) {
    const destination = join(work, 'members');
    mkdirSync(destination, { mode: 0o700 });
    const limit = maxBytes === undefined ? {} : { maxBytes };
    const archive = await readArchive(path, { destination, onBytes, ...limit });
    if (archive.files.has('oci-layout')) return await loadLayout(destination, tag, work, onBytes, maxBytes);
    requireInventory(path, archive.files);
    const images = archive.files.has(`${member.images}/${kManifestName}`) ? 'images' : 'none';
    return {
      form: archive.dialect,
      container: 'archive',
      dialect: archive.dialect,
      files: new Map([...archive.files.keys()].map((name) => [name, join(destination, name)])),
      digests: archive.verified ? 'all' : images,
      contentBytes: archive.contentBytes,
    };
  }
  if (existsSync(join(path, 'oci-layout'))) return await loadLayout(path, tag, work, onBytes, maxBytes);
  return await loadImages(path);
}

async function loadLayout(
  layout: string,
  tag: string | undefined,
  work: string,
  onBytes: Progress,
  maxBytes: number | undefined,
): Promise<Loaded> {
  const image = await readOciLayout(layout, tag);
  const destination = join(work, 'layer');
  mkdirSync(destination, { mode: 0o700 });
  const limit = maxBytes === undefined ? {} : { maxBytes };
  const archive = await readArchive(image.layerFile, { destination, onBytes, ...limit });
  requireInventory(layout, archive.files);
  return {
    form: 'oci',
    container: 'image',
    dialect: archive.dialect,
    files: new Map([...archive.files.keys()].map((name) => [name, join(destination, name)])),
    // The layer as a whole has one.
    digests: 'all',
    contentBytes: archive.contentBytes,
  };
}

/** A directory of images, whoever made it; links and the like in it are refused. */
async function loadImages(path: string): Promise<Loaded> {
  const whole = existsSync(join(path, member.images, 'inventory.img'));
  const directory = whole ? join(path, member.images) : path;
  using images = new ImageInput(directory);
  await images.verifyRest();
  const files = new Map<string, string>();
  let contentBytes = 0;
  const add = (name: string, file: string): void => {
    const stat = lstatSync(file);
    if (stat.isDirectory() || /\.log$/.test(name)) return;
    if (!stat.isFile())
      throw corrupt(
        path,
        `"${name}" is not a plain file`,
        'an incremental checkpoint cannot be packed: make a full one',
      );
    files.set(name, file);
    contentBytes += stat.size;
  };
  for (const name of images.list())
    add(name === member.stats ? member.stats : `${member.images}/${name}`, join(directory, name));
  if (whole) for (const name of readdirSync(path)) if (name !== member.images) add(name, join(path, name));
  const text = (name: string): string | undefined => {
    const file = files.get(name);
    return file === undefined ? undefined : readFileSync(file, 'utf8');
  };
  const spec = text(member.spec);
  const dialect = dialectOf(files, text(member.config), spec === undefined ? {} : specAnnotations(spec));
  return {
    form: whole ? dialect : 'criu',
    container: 'directory',
    dialect,
    files,
    digests: images.digest === '' ? 'none' : 'images',
    contentBytes,
  };
}

/** docker's directory of images is nothing but that. */
function isA(loaded: Loaded, from: SourceForm): boolean {
  if (loaded.form === from) return true;
  return loaded.form === 'criu' ? from === 'docker' : loaded.container === 'image' && loaded.dialect === from;
}

function requireInventory(path: string, files: ReadonlyMap<string, unknown>): void {
  if (files.has(`${member.images}/inventory.img`)) return;
  const pre = files.has(`${member.preImages}/inventory.img`);
  throw new StasisError({
    code: 'ARCHIVE_CORRUPT',
    message: pre
      ? `cannot use ${path}: it holds a pre-checkpoint, which is memory only`
      : `cannot use ${path}: member "${member.images}/inventory.img" is missing, without which there is no checkpoint`,
    subject: { path },
    hint: pre ? 'use the checkpoint that was made after it' : 'use another copy of the archive',
  });
}

function textOf(loaded: Loaded, name: string): string | undefined {
  const path = loaded.files.get(name);
  return path === undefined ? undefined : readFileSync(path, 'utf8');
}

/** The members of the other dialect; what is made anew goes into `target`. */
async function translate(
  loaded: Loaded,
  to: Dialect,
  request: PackRequest,
  target: string,
  notes: string[],
): Promise<Map<string, string>> {
  const members = new Map<string, string>();
  const put = (name: string, text: string): void => {
    const path = join(target, name);
    writeFileSync(path, text, { mode: 0o600 });
    members.set(name, path);
  };
  for (const [name, path] of loaded.files) if (name.startsWith(`${member.images}/`)) members.set(name, path);

  const specText = request.spec === undefined ? textOf(loaded, member.spec) : readSpec(request.spec);
  if (specText === undefined) {
    throw new StasisError({
      code: 'ARCHIVE_UNSUPPORTED',
      message: `cannot pack ${request.source} for ${request.to}: a directory of images has no spec, and every reader of archives wants one`,
      subject: { path: request.source },
      hint: "name the container's config.json with --spec",
    });
  }
  const configText = textOf(loaded, member.config);
  const config = configOf(configText, request);
  const same = loaded.dialect === to && configText !== undefined && request.spec === undefined;
  if (to === 'podman') {
    const { config: podmanConfig, spec, notes: more } = forPodman(loaded, configText, specText, config, request);
    put(member.config, podmanConfig);
    put(member.spec, spec);
    notes.push(...more);
  } else {
    put(member.spec, same ? specText : specFor(to, specText, config));
    put(member.config, same ? configText : formatConfigDump(config));
  }
  await translateRootfs(loaded, to, target, members, notes);
  translateLog(loaded, to, members);
  const known = membersOf[to];
  for (const [name, path] of loaded.files) {
    if (members.has(name) || name.startsWith(`${member.images}/`) || isHandled(name)) continue;
    const top = name.split('/')[0]!;
    if (known.has(top)) members.set(name, path);
    else notes.push(`${to} has no place for ${name}`);
  }
  if (to === 'cri-o' && !members.has(member.bindMounts)) put(member.bindMounts, bindMountsOf(specText));
  if (to === 'containerd') {
    if (!members.has(member.containerdStatus)) put(member.containerdStatus, containerdStatus(config));
    if (!members.has(member.containerdStatusDump)) put(member.containerdStatusDump, containerdStatusDump(config));
  }
  return members;
}

/** podman's own container stays what it is; any other is made into one. */
function forPodman(
  loaded: Loaded,
  configText: string | undefined,
  specText: string,
  config: ConfigDump,
  request: PackRequest,
): ReturnType<typeof podmanContainer> {
  const given = (value: string): string | undefined => (value === '' ? undefined : value);
  const wishes: PodmanWishes = {
    name: given(request.name),
    image: given(request.image),
    imageId: given(request.imageId),
    runtime: given(request.runtime),
    network: given(request.network),
  };
  if (configText === undefined || !isPodmanConfig(configText)) {
    const source = { path: request.source, hasDevShm: loaded.files.has(member.devShm) };
    return podmanContainer(config, specText, source, wishes);
  }
  const spec = loaded.dialect === 'podman' ? specText : specFor('podman', specText, config);
  return { ...alterPodmanConfig(configText, wishes), spec };
}

/** Members that are translated or made anew, and not carried as they are. */
function isHandled(name: string): boolean {
  const handled: readonly string[] = [
    member.manifest,
    member.config,
    member.spec,
    member.rootfsDiff,
    member.deletedFiles,
    ...Object.values(logMembers),
  ];
  return handled.includes(name);
}

async function translateRootfs(
  loaded: Loaded,
  to: Dialect,
  target: string,
  members: Map<string, string>,
  notes: string[],
): Promise<void> {
  const source = loaded.files.get(member.rootfsDiff);
  const deletedText = textOf(loaded, member.deletedFiles);
  if (source === undefined && deletedText === undefined) return;
  const wasInside = loaded.dialect === 'containerd';
  const isInside = to === 'containerd';
  if (wasInside === isInside) {
    if (source !== undefined) members.set(member.rootfsDiff, source);
    const deleted = loaded.files.get(member.deletedFiles);
    if (deleted !== undefined && !isInside) members.set(member.deletedFiles, deleted);
    return;
  }
  const path = join(target, member.rootfsDiff);
  const form = isInside
    ? ({ whiteouts: 'inside', compression: 'gzip' } as const)
    : ({ whiteouts: 'beside', compression: 'none' } as const);
  const { deleted, lost } = await convertRootfsTar(source, parseDeletedFiles(deletedText ?? '[]'), path, form);
  members.set(member.rootfsDiff, path);
  for (const what of lost) notes.push(`${to} has no place in ${member.rootfsDiff} for ${what}`);
  if (isInside) return;
  const list = join(target, member.deletedFiles);
  writeFileSync(list, JSON.stringify(deleted), { mode: 0o600 });
  members.set(member.deletedFiles, list);
}

/** All three write lines of "time stream tag text". */
function translateLog(loaded: Loaded, to: Dialect, members: Map<string, string>): void {
  const source = Object.values(logMembers).find((name) => loaded.files.has(name));
  if (source === undefined) return;
  members.set(logMembers[to] ?? source, loaded.files.get(source)!);
}

function configOf(text: string | undefined, request: PackRequest): ConfigDump {
  const known = text === undefined ? undefined : parseConfigDump(text);
  const now = new Date().toISOString();
  return {
    id: known?.id ?? request.name,
    name: request.name || (known?.name ?? ''),
    rootfsImage: request.image || (known?.rootfsImage ?? ''),
    rootfsImageRef: known?.rootfsImageRef ?? '',
    rootfsImageName: request.image || (known?.rootfsImageName ?? ''),
    runtime: known?.runtime ?? 'runc',
    createdTime: known?.createdTime ?? now,
    checkpointedTime: known?.checkpointedTime || now,
  };
}

function readSpec(path: string): string {
  try {
    const text = readFileSync(path, 'utf8');
    parseRuntimeConfig(text);
    return text;
  } catch (error) {
    if (error instanceof FormatError) {
      throw new StasisError({
        code: 'BUNDLE_INVALID',
        message: `cannot read the spec ${path}: ${error.message}`,
        subject: { path },
        hint: 'give the config.json of the container',
      });
    }
    throw fileError(`cannot read the spec ${path}`, path, error);
  }
}

/** The annotations by which a manager knows a container as its own. */
function specFor(to: Dialect, text: string, config: ConfigDump): string {
  const spec = parseJson(text) as { annotations?: Record<string, string> };
  const annotations = { ...spec.annotations };
  const pod = annotations['io.kubernetes.pod.name'] ?? annotations['io.kubernetes.cri.sandbox-name'];
  const namespace = annotations['io.kubernetes.pod.namespace'] ?? annotations['io.kubernetes.cri.sandbox-namespace'];
  delete annotations[kManagerAnnotation];
  delete annotations[kNameAnnotation];
  if (to === 'podman') annotations[kManagerAnnotation] = 'libpod';
  if (to === 'cri-o') {
    annotations[kManagerAnnotation] = 'cri-o';
    annotations['io.kubernetes.cri-o.Annotations'] ??= '{}';
    annotations['io.kubernetes.cri-o.Labels'] ??= '{}';
    annotations['io.kubernetes.cri-o.Metadata'] ??= JSON.stringify({ name: config.name });
    annotations['io.kubernetes.cri-o.Created'] ??= config.createdTime;
    if (pod !== undefined) annotations['io.kubernetes.pod.name'] = pod;
    if (namespace !== undefined) annotations['io.kubernetes.pod.namespace'] = namespace;
  }
  if (to === 'containerd' || to === 'stasis') annotations[kNameAnnotation] = config.name;
  if (to === 'containerd') {
    annotations['io.kubernetes.cri.container-type'] ??= 'container';
    annotations['io.kubernetes.cri.image-name'] ??= config.rootfsImageName;
    if (pod !== undefined) annotations['io.kubernetes.cri.sandbox-name'] = pod;
    if (namespace !== undefined) annotations['io.kubernetes.cri.sandbox-namespace'] = namespace;
  }
  return stringifyJson({ ...spec, annotations });
}

function bindMountsOf(specText: string): string {
  const mounts = parseRuntimeConfig(specText).mounts.filter((mount) => isBindMount(mount.options));
  return formatBindMounts(
    mounts.map(({ source, destination }) => {
      const stat = lstatSync(source, { throwIfNoEntry: false });
      return {
        source,
        destination,
        fileType: stat?.isFile() === true ? ('file' as const) : ('directory' as const),
        permissions: (stat?.mode ?? 0o755) & 0o777,
      };
    }),
  );
}

function containerdStatus(config: ConfigDump): string {
  const created = nanoseconds(config.createdTime);
  const status = {
    Pid: 0,
    CreatedAt: created,
    StartedAt: created,
    FinishedAt: 0,
    ExitCode: 0,
    Reason: '',
    Message: '',
  };
  return stringify({ Version: 'v1', ...status });
}

function containerdStatusDump(config: ConfigDump): string {
  const created = nanoseconds(config.createdTime);
  return stringify({
    id: config.id,
    metadata: { name: config.name },
    state: 1,
    created_at: created,
    started_at: created,
    image: { image: config.rootfsImageName },
    image_ref: config.rootfsImageRef,
  });
}

/** As text: more than a double holds. */
function nanoseconds(time: string): string {
  const ms = Date.parse(time);
  return Number.isFinite(ms) && ms > 0 ? `${ms}000000` : '0';
}

function stringify(document: object): string {
  return JSON.stringify(document).replace(/"(CreatedAt|StartedAt|created_at|started_at)":"(\d+)"/g, '"$1":$2');
}

function imageNotes(config: ConfigDump, dialect: Dialect, notes: string[]): void {
  if (dialect !== 'podman') notes.push('podman container restore takes an image that was packed with --for podman');
  if (!/^[0-9a-f]{64}$/.test(config.rootfsImageRef))
    notes.push('CRI-O looks for the base image by 64 digits (rootfsImageRef), which the source does not have');
}

/** Order of members: what is asked for first, images, the inventory last. */
function order(name: string): number {
  if (name === `${member.images}/inventory.img`) return 3;
  return name.startsWith(`${member.images}/`) ? 1 : name === member.rootfsDiff ? 2 : 0;
}

async function writeTar(
  output: string,
  compression: Compression,
  fill: (tar: TarWriter) => Promise<void>,
): Promise<void> {
  using file = new ArchiveFile(output);
  const tar = new TarWriter(file.sink, compression);
  try {
    await fill(tar);
    await tar.finish();
  } catch (error) {
    tar.abort();
    throw error instanceof StasisError ? error : fileError(`cannot write ${output}`, output, error);
  }
  file.commit(true);
}

async function addTree(tar: TarWriter, directory: string, prefix: string): Promise<void> {
  for (const name of readdirSync(directory).sort()) {
    const path = join(directory, name);
    const inside = prefix === '' ? name : `${prefix}/${name}`;
    if (lstatSync(path).isDirectory()) {
      await tar.addDirectory({ name: inside, mode: 0o755 });
      await addTree(tar, path, inside);
    } else {
      await tar.addFile({ name: inside }, path);
      rmSync(path);
    }
  }
}

/** Files of the private directory move, others are copied. */
async function writeDirectory(
  files: readonly (readonly [name: string, path: string])[],
  work: string,
  output: string,
): Promise<void> {
  const target = join(work, 'output');
  mkdirSync(target, { mode: 0o700 });
  try {
    for (const [name, path] of files) {
      mkdirSync(dirname(join(target, name)), { recursive: true, mode: 0o700 });
      if (path.startsWith(`${work}/`)) renameSync(path, join(target, name));
      else await copyFile(path, join(target, name), constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE);
      await syncFile(join(target, name));
    }
  } catch (error) {
    throw fileError(`cannot write ${output}`, output, error);
  }
  await placeDirectory(target, output);
}

async function placeDirectory(directory: string, output: string): Promise<void> {
  if (existsSync(output) && lstatSync(output).isDirectory() && readdirSync(output).length === 0) rmdirSync(output);
  if (!nativeBinding().renameWithoutReplacing(directory, output)) {
    throw new StasisError({
      code: 'USAGE',
      message: `cannot write ${output}: it is there already`,
      subject: { path: output },
      hint: 'name a directory that does not exist, or an empty one',
    });
  }
  syncDirectory(dirname(output));
}

function hostFacts(): {
  readonly runtimeVersion: string;
  readonly hostArch: string;
  readonly hostKernel: string;
  readonly cgroupVersion: string;
  readonly distribution: { readonly name: string; readonly version: string };
} {
  const text = existsSync('/etc/os-release') ? readFileSync('/etc/os-release', 'utf8') : '';
  const value = (key: string): string => new RegExp(`^${key}="?([^"\n]*)"?$`, 'm').exec(text)?.[1] ?? '';
  return {
    runtimeVersion: '',
    hostArch: arch() === 'x64' ? 'amd64' : arch(),
    hostKernel: release(),
    cgroupVersion: `v${readCgroupLayout().version}`,
    distribution: { name: value('ID'), version: value('VERSION_ID') },
  };
}
