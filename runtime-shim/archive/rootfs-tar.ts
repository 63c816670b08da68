// rootfs-diff.tar in its two forms: podman's and CRI-O's, whose deleted files are
// in a list beside it, and containerd's, an image layer with whiteouts in it.
import { createWriteStream } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import type { Compression } from './compression.js';
import { openArchive, readTar } from './tar-reader.js';
import { hasPlaceForNode, TarWriter } from './tar-writer.js';

const kWhiteout = '.wh.';
const kOpaque = '.wh..wh..opq';

export interface RootfsForm {
  readonly whiteouts: 'inside' | 'beside';
  readonly compression: Compression;
}

/** Writes `target`. Returns what is deleted, for the list beside, and what cannot be said in the new form. */
export async function convertRootfsTar(
  source: string | undefined,
  deletedBeside: readonly string[],
  target: string,
  form: RootfsForm,
): Promise<{ readonly deleted: readonly string[]; readonly lost: readonly string[] }> {
  const deleted = [...deletedBeside];
  const lost: string[] = [];
  const tar = new TarWriter(createWriteStream(target, { flags: 'wx', mode: 0o600 }), form.compression);
  try {
    if (source !== undefined) {
      const limits = { totalBytes: Number.MAX_SAFE_INTEGER, members: 1_000_000 };
      await readTar(
        await openArchive(source),
        limits,
        async (one, content) => {
          const name = one.name.replace(/^\.?\//, '').replace(/\/$/, '');
          if (name === '' || name === '.') return;
          const base = basename(name);
          if (form.whiteouts === 'beside' && base === kOpaque) {
            lost.push(`that everything else in "/${dirname(name)}" was deleted`);
            return;
          }
          if (form.whiteouts === 'beside' && base.startsWith(kWhiteout)) {
            deleted.push(join('/', dirname(name), base.slice(kWhiteout.length)));
            return;
          }
          if (one.isWhiteout) {
            deleted.push(`/${name}`);
            return;
          }
          const { mode, uid, gid, mtime, attributes } = one;
          const facts = { name, mode, uid, gid, mtime, attributes };
          if (one.kind === 'directory') await tar.addDirectory(facts);
          else if (one.kind === 'symlink' || one.kind === 'link')
            await tar.addLink({ ...facts, type: one.kind, target: one.linkTarget });
          else if (one.kind === 'file') await tar.addStream(facts, one.sizeBytes, content);
          else if (one.kind === 'fifo') await tar.addNode({ ...facts, type: 'fifo', major: 0, minor: 0 });
          else if (hasPlaceForNode(one.device!)) await tar.addNode({ ...facts, ...one.device! });
          else lost.push(`"/${name}", a device with a large number`);
        },
        source,
      );
    }
    if (form.whiteouts === 'inside') {
      for (const path of deleted.splice(0)) {
        const name = join(dirname(path), `${kWhiteout}${basename(path)}`).slice(1);
        await tar.addBytes({ name, mode: 0 }, new Uint8Array());
      }
    }
    await tar.finish();
  } catch (error) {
    tar.abort();
    throw error;
  }
  return { deleted, lost };
}
