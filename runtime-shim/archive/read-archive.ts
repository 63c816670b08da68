// A checkpoint archive, whoever made it: every member is checked before it is
// written, and written only into a directory that is ours alone. What is refused
// leaves nothing behind.
//
//   trust   member names and kinds: checked against rules, one by one
//           contents: against the digests that come last; for foreign archives against nothing
//   Undo    the caller removes the private directory
//   If we die here: the private directory stays, and is removed by whoever comes next (private-directory.ts)
import { mkdirSync, statfsSync, statSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { Readable } from 'node:stream';
import {
  isPodmanConfig,
  member,
  memberName,
  parseConfigDump,
  parseDeletedFiles,
  specAnnotations,
  kManagerAnnotation,
  kNameAnnotation,
  type Dialect,
} from '../../oci-spec/checkpoint-archive.js';
import { FormatError } from '../../oci-spec/json.js';
import { StasisError, fileError } from '../errors/index.js';
import { FileDigest } from './file-digest.js';
import {
  isPageFile,
  isSame,
  kManifestName,
  parseArchiveManifest,
  parseManifest,
  type ManifestEntry,
} from './manifest.js';
import { corrupt, openArchive, quoted, readTar, type Member } from './tar-reader.js';

/** Small members are read whole: texts, not page data. */
const kMaxTextBytes = 64 << 20;
const kMaxMembers = 100_000;
/** What a file system keeps for others. */
const kReserveBytes = 64 << 20;

const texts: readonly string[] = [
  member.config,
  member.spec,
  member.deletedFiles,
  member.manifest,
  `${member.images}/${kManifestName}`,
];

export interface ArchiveContents {
  readonly path: string;
  readonly dialect: Dialect;
  /** Plain files, by name. */
  readonly files: ReadonlyMap<string, ManifestEntry>;
  readonly directories: ReadonlySet<string>;
  /** Whether every member has been compared with a digest. */
  readonly verified: boolean;
  readonly contentBytes: number;
  /** Of the members that are texts. */
  readonly texts: ReadonlyMap<string, string>;
}

export interface ReadArchiveOptions {
  /** An existing, empty, private directory; undefined: nothing is written. */
  readonly destination?: string;
  /** What is written there; everything if undefined. */
  readonly wanted?: (name: string) => boolean;
  readonly maxBytes?: number;
  readonly onBytes?: (count: number) => void;
  /** What is refused for being incomplete need not be a checkpoint: pack reads layers of images as well. */
  readonly source?: Readable;
}

/** Throws ARCHIVE_CORRUPT (or IMAGE_MISMATCH) naming the member. */
export async function readArchive(path: string, options: ReadArchiveOptions = {}): Promise<ArchiveContents> {
  const source = options.source ?? (await openArchive(path, options.onBytes));
  const files = new Map<string, ManifestEntry>();
  const directories = new Set<string>();
  const found = new Map<string, string>();
  const { destination } = options;
  let contentBytes = 0;
  let afterManifest: string | undefined;
  try {
    await readTar(
      source,
      { totalBytes: options.maxBytes ?? roomIn(destination), members: kMaxMembers },
      async (one, content) => {
        const name = checkedName(one, path);
        if (name === '') return;
        if (found.has(member.manifest)) afterManifest ??= name;
        if (files.has(name) || (directories.has(name) && one.kind !== 'directory'))
          throw corrupt(path, `member ${quoted(name)} is there twice`);
        refuseBelowFile(name, files, path);
        if (one.kind === 'directory') {
          directories.add(name);
          if (destination !== undefined && options.wanted?.(name) !== false) makeDirectories(destination, name);
          return;
        }
        const text = texts.includes(name);
        if (text && one.sizeBytes > kMaxTextBytes)
          throw corrupt(
            path,
            `member ${quoted(name)} has ${one.sizeBytes} bytes, more than any may have (${kMaxTextBytes})`,
          );
        const target =
          destination === undefined || options.wanted?.(name) === false ? undefined : join(destination, name);
        if (target !== undefined) makeDirectories(destination!, dirname(name));
        const pages = isPageFile(basename(name));
        const { entry, bytes } = await takeFile(content, target, text, pages);
        files.set(name, entry);
        contentBytes += entry.sizeBytes;
        if (bytes !== undefined) found.set(name, bytes.toString('utf8'));
      },
      path,
    );
  } finally {
    source.destroy();
  }
  if (afterManifest !== undefined)
    throw corrupt(path, `member ${quoted(afterManifest)} comes after ${member.manifest}, which is the last one`);
  return judge({ path, files, directories, texts: found, contentBytes });
}

/** What the whole says, when all has been read. */
function judge(archive: Omit<ArchiveContents, 'dialect' | 'verified'>): ArchiveContents {
  const { path, files, texts: found } = archive;
  const parse = <T>(name: string, read: (text: string) => T): T | undefined => {
    const text = found.get(name);
    if (text === undefined) return undefined;
    try {
      return read(text);
    } catch (error) {
      if (!(error instanceof FormatError)) throw error;
      throw corrupt(path, `member ${quoted(name)}: ${error.message}`);
    }
  };
  const imageManifest = parse(`${member.images}/${kManifestName}`, parseManifest);
  const manifest = parse(member.manifest, parseArchiveManifest);
  if (manifest === undefined && imageManifest !== undefined && files.has(member.dumpLog) && !files.has(member.config))
    throw corrupt(path, `it ends too early: ${member.config} is missing`);
  for (const [prefix, expected] of [
    ['', manifest],
    [`${member.images}/`, imageManifest],
  ] as const) {
    for (const [name, entry] of expected?.files ?? [])
      compare(path, `${prefix}${name}`, files.get(`${prefix}${name}`), entry);
  }
  if (manifest !== undefined) {
    for (const name of files.keys()) {
      if (name !== member.manifest && !manifest.files.has(name))
        throw corrupt(path, `member ${quoted(name)} is not in ${member.manifest}`);
    }
  }
  parse(member.config, parseConfigDump);
  const annotations = parse(member.spec, specAnnotations) ?? {};
  for (const deleted of parse(member.deletedFiles, parseDeletedFiles) ?? []) {
    const problem = deletedPathProblem(deleted);
    if (problem !== undefined) throw corrupt(path, `${member.deletedFiles} names ${quoted(deleted)}, which ${problem}`);
  }
  return {
    ...archive,
    dialect: dialectOf(files, found.get(member.config), annotations),
    verified: manifest !== undefined,
  };
}

function compare(path: string, name: string, found: ManifestEntry | undefined, expected: ManifestEntry): void {
  if (found === undefined) throw corrupt(path, `member ${quoted(name)} is missing`);
  if (found.sizeBytes !== expected.sizeBytes)
    throw corrupt(path, `member ${quoted(name)} has ${found.sizeBytes} bytes, the manifest says ${expected.sizeBytes}`);
  if (isSame(found, expected)) return;
  throw new StasisError({
    code: 'IMAGE_MISMATCH',
    message: `cannot read ${path}: member ${quoted(name)} is not the file that was written: its digest differs from the manifest's`,
    subject: { path, image: name },
    hint: 'use another copy of the archive',
  });
}

/** `files`: names of members. */
export function dialectOf(
  files: ReadonlyMap<string, unknown>,
  config: string | undefined,
  annotations: Record<string, string>,
): Dialect {
  if (config !== undefined && isPodmanConfig(config)) return 'podman';
  const manager = annotations[kManagerAnnotation];
  if (manager === 'cri-o') return 'cri-o';
  if (manager === 'libpod') return 'podman';
  if (files.has(member.containerdStatusDump)) return 'containerd';
  // Ours bear containerd's annotation for checkpointctl's sake.
  return files.has(member.manifest) || annotations[kNameAnnotation] === undefined ? 'stasis' : 'containerd';
}

/** Paths in the container, absolute; undefined if it is a sound one. */
export function deletedPathProblem(path: string): string | undefined {
  if (!path.startsWith('/')) return 'is not absolute';
  if (Buffer.byteLength(path) > 4096) return 'is too long';
  const parts = path.replace(/\/$/, '').split('/').slice(1);
  if (parts.length === 0 || (parts.length === 1 && parts[0] === '')) return 'is the root itself';
  if (parts.includes('..')) return 'leads out of the root file system';
  if (parts.includes('.') || parts.includes('')) return 'has an empty part';
  return undefined;
}

function checkedName(one: Member, path: string): string {
  let name: string;
  try {
    name = memberName(one.name);
  } catch (error) {
    if (error instanceof FormatError) throw corrupt(path, error.message);
    throw error;
  }
  if (name === '' && one.kind !== 'directory') throw corrupt(path, `member ${quoted(one.name)} has no name`);
  if (one.kind === 'file' || one.kind === 'directory') {
    if (one.kind === 'file' && /^(pre-)?checkpoint\/.*\//.test(name))
      throw corrupt(path, `member ${quoted(name)} lies in a directory of its own, and images do not`);
    return name;
  }
  const words = {
    symlink: `is a symbolic link to ${quoted(one.linkTarget)}`,
    link: `is a hard link to ${quoted(one.linkTarget)}`,
    device: 'is a device',
    fifo: 'is a named pipe',
  }[one.kind];
  throw corrupt(
    path,
    `member ${quoted(name)} ${words}, and a checkpoint has plain files and directories only`,
    name === `${member.images}/parent`
      ? 'it belongs to an incremental checkpoint: make a full one'
      : 'use another copy of the archive',
  );
}

/** "a" as a file and "a/b": the second would have to replace the first. */
function refuseBelowFile(name: string, files: ReadonlyMap<string, unknown>, path: string): void {
  for (let parent = dirname(name); parent !== '.'; parent = dirname(parent)) {
    if (files.has(parent)) throw corrupt(path, `member ${quoted(name)} lies below ${quoted(parent)}, which is a file`);
  }
}

function makeDirectories(destination: string, name: string): void {
  if (name === '.' || name === '') return;
  // Nothing but directories that we made can be there: no link is ever written.
  mkdirSync(join(destination, name), { recursive: true, mode: 0o700 });
}

async function takeFile(
  content: AsyncIterable<Buffer>,
  target: string | undefined,
  keep: boolean,
  isPages: boolean,
): Promise<{ readonly entry: ManifestEntry; readonly bytes: Buffer | undefined }> {
  const digest = new FileDigest({ sha256: true, pages: isPages });
  const pieces: Buffer[] = [];
  // "wx": never into something that exists.
  const file = target === undefined ? undefined : await open(target, 'wx', 0o600);
  try {
    let buffered: Buffer[] = [];
    let bufferedBytes = 0;
    const flush = async (): Promise<void> => {
      if (file !== undefined && bufferedBytes > 0) await writeAll(file, buffered);
      buffered = [];
      bufferedBytes = 0;
    };
    for await (const piece of content) {
      digest.update(piece);
      if (keep) pieces.push(piece);
      buffered.push(piece);
      bufferedBytes += piece.length;
      if (bufferedBytes >= 1 << 20) await flush();
    }
    await flush();
  } catch (error) {
    throw target === undefined ? error : writeError(target, error);
  } finally {
    await file?.close();
  }
  return { entry: digest.entry(), bytes: keep ? Buffer.concat(pieces) : undefined };
}

async function writeAll(file: Awaited<ReturnType<typeof open>>, pieces: Buffer[]): Promise<void> {
  for (let rest = pieces; rest.length > 0;) {
    const { bytesWritten } = await file.writev(rest);
    let taken = bytesWritten;
    rest = rest.flatMap((piece) => {
      const used = Math.min(taken, piece.length);
      taken -= used;
      return used === piece.length ? [] : [piece.subarray(used)];
    });
  }
}

function writeError(target: string, error: unknown): unknown {
  const { syscall } = error as NodeJS.ErrnoException;
  return syscall === undefined ? error : fileError(`cannot unpack to ${target}`, target, error);
}

/** More than fits is refused by its header, before the disk is full. */
function roomIn(directory: string | undefined): number {
  if (directory === undefined) return Number.MAX_SAFE_INTEGER;
  const { bavail, bsize } = statfsSync(directory);
  return Math.max(0, bavail * bsize - kReserveBytes);
}

export function archiveSizeBytes(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.size ?? 0;
}
