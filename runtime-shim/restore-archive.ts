// Restoring from an archive: unpacked into a private directory, checked as a
// whole, and only then used. The archive's own config.json grants nothing: the
// bundle of this side is the only authority.
//
//   Undo            the private directory is removed, whatever comes of the restore
//   If we die here  it stays under a name that tells whose it was, and goes with the next one;
//                   what is in the root file system by then stays there
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { nativeBinding } from '../nativecore/index.js';
import { member, parseDeletedFiles } from '../oci-spec/checkpoint-archive.js';
import { applyRootfs } from './archive/apply-rootfs.js';
import { PrivateDirectory } from './archive/private-directory.js';
import { readArchive } from './archive/read-archive.js';
import { temporaryDirectory } from './archive-output.js';
import { readBundle } from './bundle.js';
import { refuseObjections } from './checkpoint-request.js';
import type { Degradation } from './errors/index.js';
import { allowsDevice, checkContainerId, findStateRoot, refuseUnlessAllowed } from './container/index.js';
import { planContainer } from './plan.js';
import { restoreContainer } from './restore.js';
import type { RestoreRequest, RestoredContainer } from './restore-request.js';

export interface ArchiveRestore extends Omit<RestoreRequest, 'imagePath'> {
  /** Absolute. */
  readonly archive: string;
  readonly ignoreRootfs: boolean;
  readonly maxBytes: number | undefined;
  readonly onBytes?: (count: number) => void;
}

export async function restoreArchive(request: ArchiveRestore): Promise<RestoredContainer> {
  const goal = `restore container ${JSON.stringify(request.id)}`;
  checkContainerId(request.id);
  const bundle = readBundle(request.bundle);
  // Known before: an id in use may be that of a container on this very root file system.
  const root = request.root ?? findStateRoot(request.id, process.env);
  if (existsSync(join(root, request.id))) refuseUnlessAllowed(request.id, 'running', 'restore');

  using unpacked = new PrivateDirectory(temporaryDirectory(), 'restore');
  const archive = await readArchive(request.archive, {
    destination: unpacked.path,
    wanted: (name) => name === member.rootfsDiff || name.startsWith(`${member.images}/`) || name === member.images,
    ...(request.maxBytes === undefined ? {} : { maxBytes: request.maxBytes }),
    ...(request.onBytes === undefined ? {} : { onBytes: request.onBytes }),
  });
  const imagePath = join(unpacked.path, member.images);
  const deleted = parseDeletedFiles(archive.texts.get(member.deletedFiles) ?? '[]');
  const hasDiff = archive.files.has(member.rootfsDiff);
  const degradations = notUsed(archive.files);
  if (!request.ignoreRootfs && (hasDiff || deleted.length > 0)) {
    // All that can be known to stand in the way, before a file is changed.
    refuseObjections(goal, planContainer({ imagePath, bundle: request.bundle }).objections);
    const partial = await applyRootfs(bundle.rootfs, {
      tarFile: hasDiff ? join(unpacked.path, member.rootfsDiff) : undefined,
      deleted,
      allowsDevice: (device) => allowsDevice(bundle.spec, device),
      calls: nativeBinding(),
    });
    degradations.push(...partial);
  }
  const restored = await restoreContainer({ ...request, imagePath });
  return { ...restored, degradations: [...restored.degradations, ...degradations] };
}

/** What a manager would put back, and only it knows where. */
function notUsed(files: ReadonlyMap<string, unknown>): Degradation[] {
  return [...files.keys()]
    .filter((name) => name === member.devShm || name.startsWith(`${member.volumes}/`))
    .map((name) => ({
      code: 'ARCHIVE_PARTIAL',
      message: `"${name}" of the archive is not put back: its place is a mount that the bundle provides`,
      subject: { path: name },
    }));
}

/** The images of an archive for whoever only looks at them. */
export async function lookIntoArchive<T>(archive: string, use: (imagePath: string) => T): Promise<T> {
  using unpacked = new PrivateDirectory(temporaryDirectory(), 'look');
  await readArchive(archive, {
    destination: unpacked.path,
    wanted: (name) => name.startsWith(`${member.images}/`) || name === member.images,
  });
  return use(join(unpacked.path, member.images));
}
