// Containers that runc takes down and brings back with CRIU, to see that it reads
// our images and we read its.
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Container } from './container.js';
import { withCriu } from './peers.js';

/** Gives the directory of the images. */
export async function checkpointByCriu(
  container: Container,
  flags: readonly string[] = [],
  name?: string,
): Promise<string> {
  const images = container.imagesDirectory(name);
  mkdirSync(`${images}.work`, { recursive: true });
  const { exitCode, stderr } = await container.runc(container.checkpointArgs(images, flags), { env: withCriu });
  assert.equal(exitCode, 0, stderr);
  return images;
}

export async function restoreByCriu(
  container: Container,
  images: string,
  flags: readonly string[] = [],
): Promise<void> {
  const args = container.restoreArgs(images, flags);
  const { exitCode, stderr } = await container.runDetached(args, 'runc', withCriu);
  const log = join(`${images}.work`, 'restore.log');
  assert.equal(exitCode, 0, `${stderr}\n${existsSync(log) ? readFileSync(log, 'utf8').slice(-2000) : ''}`);
}
