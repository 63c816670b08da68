// What a checkpoint is, for `stasis verify`: reading it checks every digest.
import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { member, parseConfigDump } from '../../oci-spec/checkpoint-archive.js';
import { kManifestName } from '../archive/manifest.js';
import { readOciLayout } from '../archive/oci-image.js';
import { PrivateDirectory } from '../archive/private-directory.js';
import { readArchive, type ArchiveContents } from '../archive/read-archive.js';
import { temporaryDirectory } from '../archive-output.js';
import type { Progress } from './forms.js';
import { loadImages, requireInventory, textOf } from './load-checkpoint.js';

export interface CheckpointDescription {
  /** "archive (podman)" */
  readonly form: string;
  readonly name: string;
  readonly files: number;
  readonly contentBytes: number;
  readonly digests: 'all' | 'images' | 'none';
  /** Earlier checkpoints that it leaves pages to, whose digests were compared as well. */
  readonly parents: number;
}

/** Throws when anything is wrong with it. */
export async function describeCheckpoint(path: string, onBytes: Progress): Promise<CheckpointDescription> {
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
      parents: loaded.parents,
    };
  }
  const archive = await readArchive(path, { onBytes });
  if (!archive.files.has('oci-layout')) return describeContents(path, `archive (${archive.dialect})`, archive);
  // Its index comes last, and says what the blobs are.
  using work = new PrivateDirectory(temporaryDirectory(), 'verify');
  await readArchive(path, { destination: work.path, onBytes });
  return await describeLayout(path, work.path, onBytes);
}

async function describeLayout(path: string, layout: string, onBytes: Progress): Promise<CheckpointDescription> {
  const image = await readOciLayout(layout, undefined);
  const archive = await readArchive(image.layerFile, { onBytes });
  return { ...describeContents(path, `image (${archive.dialect})`, archive), digests: 'all' };
}

function describeContents(path: string, form: string, archive: ArchiveContents): CheckpointDescription {
  requireInventory(path, archive.files);
  return {
    form,
    name: nameOf(archive.texts.get(member.config)),
    files: archive.files.size,
    contentBytes: archive.contentBytes,
    digests: archive.verified ? 'all' : archive.files.has(`${member.images}/${kManifestName}`) ? 'images' : 'none',
    parents: 0,
  };
}

function nameOf(config: string | undefined): string {
  return config === undefined ? '' : parseConfigDump(config).name;
}
