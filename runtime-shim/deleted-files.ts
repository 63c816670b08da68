// Images with the content of deleted files, open for the core: the root task, which reads them, may have no right to
// the directory that they are in.
import { closeSync, constants, openSync } from 'node:fs';
import { join } from 'node:path';
import { fileError } from './errors/index.js';
import type { ImageInput } from './image-input.js';

const imageName = /^ghost-file-[0-9a-f]+\.img$/;

/** By name; the caller closes them. */
export function openDeletedFileImages(images: ImageInput): Map<string, number> {
  const opened = new Map<string, number>();
  try {
    for (const name of images.list()) {
      // Refuses what is no plain file.
      if (imageName.test(name) && images.sizeBytes(name) !== undefined) opened.set(name, openImage(images, name));
    }
  } catch (error) {
    for (const fd of opened.values()) closeSync(fd);
    throw error;
  }
  return opened;
}

function openImage({ directory }: ImageInput, name: string): number {
  const path = join(directory, name);
  try {
    return openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  } catch (error) {
    throw fileError(`cannot read image ${name}`, path, error);
  }
}
