// A file system that is full at once, at a directory of somebody else's choice.
import { mkdirSync } from 'node:fs';
import { mustRun, run } from './run.js';
import type { TestBed } from './test-bed.js';

export async function mountSmall(bed: TestBed, directory: string): Promise<void> {
  mkdirSync(directory, { recursive: true });
  await mustRun('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'none', directory]);
  bed.onClose(async () => {
    await run('umount', ['-l', directory]);
  });
}

/** A file system on a disk, of so many mebibytes. */
export async function mountDisk(bed: TestBed, directory: string, sizeMib: number): Promise<void> {
  mkdirSync(directory, { recursive: true });
  const image = `${directory}.ext4`;
  await mustRun('truncate', ['-s', `${sizeMib}M`, image]);
  await mustRun('mkfs.ext4', ['-q', image]);
  await mustRun('mount', ['-o', 'loop', image, directory]);
  bed.onClose(async () => {
    await run('umount', ['-l', directory]);
  });
}
