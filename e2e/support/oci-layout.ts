// An OCI image of one layer, as a layout directory or a tar file of it.
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { mustRun } from './run.js';

const mediaType = 'application/vnd.oci.image';

/** Writes `archive`, for managers to import: an image called `name` (with its registry) of what is below `rootfs`. */
export async function makeImage(rootfs: string, name: string, archive: string): Promise<void> {
  const directory = `${archive}.layout`;
  await makeLayout(rootfs, name, directory);
  await mustRun('tar', ['-C', directory, '-cf', archive, '.']);
  rmSync(directory, { recursive: true });
}

/** Makes `directory`: the same as an OCI layout. */
export async function makeLayout(rootfs: string, name: string, directory: string): Promise<void> {
  const blobs = join(directory, 'blobs/sha256');
  mkdirSync(blobs, { recursive: true });
  const put = (content: Buffer): { readonly digest: string; readonly size: number } => {
    const hex = createHash('sha256').update(content).digest('hex');
    writeFileSync(join(blobs, hex), content);
    return { digest: `sha256:${hex}`, size: content.length };
  };
  const putJson = (value: unknown): { readonly digest: string; readonly size: number } =>
    put(Buffer.from(JSON.stringify(value)));

  const tar = join(directory, 'layer.tar');
  await mustRun('tar', ['-C', rootfs, '-cf', tar, '.']);
  const layer = put(readFileSync(tar));
  rmSync(tar);
  const config = putJson({
    architecture: 'amd64',
    os: 'linux',
    config: { Env: ['PATH=/bin'], Cmd: ['sleep', '1000000'] },
    rootfs: { type: 'layers', diff_ids: [layer.digest] },
  });
  const manifest = putJson({
    schemaVersion: 2,
    mediaType: `${mediaType}.manifest.v1+json`,
    config: { mediaType: `${mediaType}.config.v1+json`, ...config },
    layers: [{ mediaType: `${mediaType}.layer.v1.tar`, ...layer }],
  });
  const annotations = { 'io.containerd.image.name': name };
  const index = { mediaType: `${mediaType}.manifest.v1+json`, ...manifest, annotations };
  writeFileSync(join(directory, 'index.json'), JSON.stringify({ schemaVersion: 2, manifests: [index] }));
  writeFileSync(join(directory, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}');
}
