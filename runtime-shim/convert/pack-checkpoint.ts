// Checkpoints from one form into another: archives of podman, CRI-O and
// containerd and our own, OCI images, directories of images (CRIU's, docker's).
//
//   Undo            the private directory beside the output is removed
//   If we die here  it stays, and goes with the next one; the output's name is not there
import { mkdirSync, readFileSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import {
  imageAnnotations,
  member,
  parseConfigDump,
  specAnnotations,
  type ConfigDump,
  type Dialect,
} from '../../oci-spec/checkpoint-archive.js';
import type { Compression } from '../archive/compression.js';
import { formatManifest } from '../archive/manifest.js';
import { writeOciLayout } from '../archive/oci-image.js';
import { PrivateDirectory } from '../archive/private-directory.js';
import type { TarWriter } from '../archive/tar-writer.js';
import { givingBack } from '../archive-output.js';
import { StasisError } from '../errors/index.js';
import type { ConversionResult, SourceForm } from './forms.js';
import { hostFacts } from './host-facts.js';
import { isA, loadCheckpoint, type LoadedCheckpoint } from './load-checkpoint.js';
import { translateMembers, type TranslationRequest } from './translate-members.js';
import { addTree, placeDirectory, writeDirectory, writeTar } from './write-output.js';

export interface PackRequest extends TranslationRequest {
  /** What the source has to be; told by itself if undefined. */
  readonly from: SourceForm | undefined;
  /** Whose members an OCI image has; undefined: the source's. */
  readonly imageFor: Dialect | undefined;
  /** Absolute. */
  readonly output: string;
  readonly compression: Compression;
  /** Of an image in an OCI layout. */
  readonly tag: string;
  readonly stasisVersion: string;
  /** How much of how much is written; before that, how much has been read, of 0. */
  readonly onProgress: (doneBytes: number, totalBytes: number) => void;
}

export async function packCheckpoint(request: PackRequest): Promise<ConversionResult> {
  using work = new PrivateDirectory(dirname(request.output), 'pack');
  const unpacked = join(work.path, 'source');
  mkdirSync(unpacked, { mode: 0o700 });
  let readBytes = 0;
  const onBytes = (count: number): void => request.onProgress((readBytes += count), 0);
  const loaded = await loadCheckpoint(request.source, request.tag === '' ? undefined : request.tag, unpacked, onBytes);
  if (request.from !== undefined && !isA(loaded, request.from)) {
    throw new StasisError({
      code: 'ARCHIVE_UNSUPPORTED',
      message: `cannot pack ${request.source}: it is not from ${request.from} but from ${loaded.form}`,
      subject: { path: request.source },
      hint: `leave --from out, or say --from ${loaded.form}`,
    });
  }
  if (request.to === 'criu' || request.to === 'docker') return await packImages(loaded, request, work.path);
  const notes: string[] = [];
  const target = join(work.path, 'target');
  mkdirSync(target, { mode: 0o700 });
  const dialect =
    request.to === 'oci' || request.to === 'oci-archive' ? (request.imageFor ?? loaded.dialect) : request.to;
  const members = await translateMembers(loaded, dialect, request, target, notes);
  const fill = async (tar: TarWriter): Promise<void> =>
    await addMembers(tar, members, work.path, () =>
      request.onProgress(tar.writtenBytes, Math.max(loaded.contentBytes, tar.writtenBytes)),
    );
  if (request.to === 'oci' || request.to === 'oci-archive') {
    const config = parseConfigDump(readFileSync(members.get(member.config)!, 'utf8'));
    const layout = await makeLayout(members, config, request, work.path, fill);
    imageNotes(config, dialect, notes);
    if (request.to === 'oci') await placeDirectory(layout, request.output);
    else await writeTar(request.output, 'none', (tar) => addTree(tar, layout, ''));
  } else {
    await writeTar(request.output, request.compression, fill);
  }
  return { from: loaded.form, output: request.output, files: members.size, notes };
}

/** Into a directory of images alone. */
async function packImages(loaded: LoadedCheckpoint, request: PackRequest, work: string): Promise<ConversionResult> {
  const images = [...loaded.files].filter(([name]) => name.startsWith(`${member.images}/`));
  const rest = [...loaded.files.keys()].filter(
    (name) => !name.startsWith(`${member.images}/`) && name !== member.manifest,
  );
  const notes = rest.length > 0 ? [`a directory of images has no place for ${rest.sort().join(', ')}`] : [];
  await writeDirectory(
    images.map(([name, path]) => [basename(name), path]),
    work,
    request.output,
  );
  return { from: loaded.form, output: request.output, files: images.length, notes };
}

/** In their order, the manifest last; those in the private directory `work` are used up. */
async function addMembers(
  tar: TarWriter,
  members: ReadonlyMap<string, string>,
  work: string,
  onPiece: () => void,
): Promise<void> {
  const files = [...members].sort(([one], [other]) => order(one) - order(other) || (one < other ? -1 : 1));
  await tar.addDirectory({ name: member.images });
  const parents = new Set<string>([member.images]);
  for (const [name, path] of files) {
    if (name.includes('/') && !parents.has(dirname(name))) {
      parents.add(dirname(name));
      await tar.addDirectory({ name: dirname(name) });
    }
    // What was unpacked here is not needed any more once it is in.
    const own = path.startsWith(`${work}/`);
    const giveBack = own ? givingBack() : undefined;
    await tar.addFile({ name }, path, {
      writable: own,
      afterPiece: (fd, offset, lengthBytes) => {
        giveBack?.(fd, offset, lengthBytes);
        onPiece();
      },
    });
    if (own) rmSync(path);
  }
  await tar.addBytes({ name: member.manifest }, formatManifest({ files: tar.entries }));
}

/** An OCI layout in the private directory `work`, whose path is returned. */
async function makeLayout(
  members: ReadonlyMap<string, string>,
  config: ConfigDump,
  request: PackRequest,
  work: string,
  fill: (tar: TarWriter) => Promise<void>,
): Promise<string> {
  const spec = specAnnotations(readFileSync(members.get(member.spec)!, 'utf8'));
  const layout = join(work, 'layout');
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
  return layout;
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
