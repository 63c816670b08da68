// Images with the content of deleted files, open for the core: the root task, which reads them, may have no right to
// the directory that they are in.
import { closeSync } from 'node:fs';
import type { ImageInput } from './image-input.js';

const imageName = /^ghost-file-[0-9a-f]+\.img$/;

/** By name; the caller closes them. */
export function openDeletedFileImages(images: ImageInput): Map<string, number> {
  const opened = new Map<string, number>();
  try {
    for (const name of images.list()) {
      const fd = imageName.test(name) ? images.openFile(name) : undefined;
      if (fd !== undefined) opened.set(name, fd);
    }
  } catch (error) {
    for (const fd of opened.values()) closeSync(fd);
    throw error;
  }
  return opened;
}
