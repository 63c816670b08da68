// An overlay over the root file system of a container, as managers have it.
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Container } from './container.js';
import { mustRun, run } from './run.js';
import type { TestBed } from './test-bed.js';

/** Until the test bed is closed. `hidden`: nobody sees the layer that is written to. */
export async function mountOverlay(
  bed: TestBed,
  { rootfs, directory }: Container,
  upper: 'seen' | 'hidden' = 'seen',
): Promise<void> {
  const layers = join(directory, 'layers');
  mkdirSync(layers);
  if (upper === 'hidden') await mustRun('mount', ['-t', 'tmpfs', 'none', layers]);
  for (const place of ['upper', 'work']) mkdirSync(join(layers, place));
  const options = `lowerdir=${rootfs},upperdir=${layers}/upper,workdir=${layers}/work`;
  await mustRun('mount', ['-t', 'overlay', 'overlay', '-o', options, rootfs]);
  if (upper === 'hidden') await mustRun('umount', ['-l', layers]);
  bed.onClose(async () => {
    await run('umount', ['-l', rootfs]);
  });
}
