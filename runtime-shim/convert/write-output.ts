// Where a conversion ends: an archive or a directory, complete under its name or
// not there.
import { constants, existsSync, lstatSync, mkdirSync, readdirSync, renameSync, rmSync, rmdirSync } from 'node:fs';
import { copyFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { nativeBinding } from '../../nativecore/index.js';
import { ArchiveFile, syncDirectory, syncFile } from '../archive/archive-file.js';
import type { Compression } from '../archive/compression.js';
import { TarWriter } from '../archive/tar-writer.js';
import { StasisError, fileError } from '../errors/index.js';

export async function writeTar(
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

export async function addTree(tar: TarWriter, directory: string, prefix: string): Promise<void> {
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
export async function writeDirectory(
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

export async function placeDirectory(directory: string, output: string): Promise<void> {
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
