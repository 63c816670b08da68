// A checkpoint of any form as files on this machine, unpacked where it has to be
// and checked first.
import { existsSync, lstatSync, mkdirSync, readFileSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { member, specAnnotations, type Dialect } from '../../oci-spec/checkpoint-archive.js';
import { kManifestName } from '../archive/manifest.js';
import { readOciLayout } from '../archive/oci-image.js';
import { dialectOf, readArchive } from '../archive/read-archive.js';
import { corrupt } from '../archive/tar-reader.js';
import { StasisError } from '../errors/index.js';
import { ImageInput } from '../image-input.js';
import type { Progress, SourceForm } from './forms.js';

/** A checkpoint as files on this machine. */
export interface LoadedCheckpoint {
  readonly form: SourceForm;
  readonly container: 'archive' | 'image' | 'directory';
  readonly dialect: Dialect;
  /** Members of an archive, by name. */
  readonly files: ReadonlyMap<string, string>;
  readonly digests: 'all' | 'images' | 'none';
  readonly contentBytes: number;
  /** Earlier checkpoints that this one leaves pages to. */
  readonly parents: number;
}

export async function loadCheckpoint(
  path: string,
  tag: string | undefined,
  work: string,
  onBytes: Progress,
  maxBytes?: number,
): Promise<LoadedCheckpoint> {
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
      parents: 0,
    };
  }
  if (existsSync(join(path, 'oci-layout'))) return await loadLayout(path, tag, work, onBytes, maxBytes);
  const loaded = await loadImages(path);
  if (loaded.parents > 0) {
    throw new StasisError({
      code: 'ARCHIVE_UNSUPPORTED',
      message: `cannot use ${path}: it is an incremental checkpoint, whose memory is in ${loaded.parents} other director${loaded.parents === 1 ? 'y' : 'ies'} as well`,
      subject: { path },
      hint: 'make a whole one, without --parent-path and --iterate',
    });
  }
  return loaded;
}

async function loadLayout(
  layout: string,
  tag: string | undefined,
  work: string,
  onBytes: Progress,
  maxBytes: number | undefined,
): Promise<LoadedCheckpoint> {
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
    parents: 0,
  };
}

/** A directory of images, whoever made it, with those that it leaves pages to; links and the like in it are refused. */
export async function loadImages(path: string): Promise<LoadedCheckpoint> {
  const whole = existsSync(join(path, member.images, 'inventory.img'));
  const directory = whole ? join(path, member.images) : path;
  using images = new ImageInput(directory);
  let parents = 0;
  for (let at = images.parent(); at !== undefined; at = at.parent()) parents += 1;
  await images.verifyRest();
  const files = new Map<string, string>();
  let contentBytes = 0;
  const add = (name: string, file: string): void => {
    const stat = lstatSync(file);
    if (stat.isDirectory() || /\.log$/.test(name)) return;
    if (!stat.isFile()) throw corrupt(path, `"${name}" is not a plain file`);
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
    parents,
  };
}

/** docker's directory of images is nothing but that. */
export function isA(loaded: LoadedCheckpoint, from: SourceForm): boolean {
  if (loaded.form === from) return true;
  return loaded.form === 'criu' ? from === 'docker' : loaded.container === 'image' && loaded.dialect === from;
}

export function requireInventory(path: string, files: ReadonlyMap<string, unknown>): void {
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

export function textOf(loaded: LoadedCheckpoint, name: string): string | undefined {
  const path = loaded.files.get(name);
  return path === undefined ? undefined : readFileSync(path, 'utf8');
}
