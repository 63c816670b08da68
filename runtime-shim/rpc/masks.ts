// Masked paths, which clients do not name alike. runc calls a masked file
// "/dev/null" and leaves directories to the images; crun calls a masked file by
// its path, and binds an empty directory over masked ones. Images that one of
// them has had written are restored for the other all the same.
import { mkdirSync, rmdirSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { kEmptyDirectoryName } from '../../oci-spec/crun-status.js';
import { bindsOfEmptyDirectory, isEmptyDirectoryKey, kNullDevice } from '../container/index.js';
import type { ImageModel } from '../engine/index.js';
import type { RpcOptions } from './packets.js';

/** Directory in the state of its container where runc has the root file system mounted for a restore. */
const kRuncRoot = 'criu-root';

/** Adds what crun has mounted and a client other than crun does not name. */
export function nameMasks(hostPid: number, externalMounts: Map<string, string>): void {
  for (const mountPoint of bindsOfEmptyDirectory(hostPid)) {
    if (!externalMounts.has(mountPoint)) externalMounts.set(mountPoint, `/${kEmptyDirectoryName}`);
  }
}

/** What was made for masks; it goes again unless it is kept. */
export interface ProvidedMasks {
  keep(): void;
  [Symbol.dispose](): void;
}

/** Adds what the images want over masked paths and the client does not give. */
export function provideMasks(model: ImageModel, options: RpcOptions, mounts: Map<string, string>): ProvidedMasks {
  const mountNamespace = model.tasks[0]?.ids?.mnt_ns_id;
  const entries = mountNamespace === undefined ? [] : model.set.messages('mountpoints', mountNamespace);
  const nullDevice = mounts.get(kNullDevice);
  // With the state of the container, where the base runtime removes it: a bind of what has no name cannot be dumped.
  const emptyDirectory =
    options.root !== undefined && basename(options.root) === kRuncRoot
      ? join(dirname(options.root), kEmptyDirectoryName)
      : undefined;
  let made: string | undefined;
  for (const { ext_key: key, mountpoint, root } of entries) {
    const place = mountpoint.replace(/^\.\//, '/');
    if (key === undefined || mounts.has(key) || mounts.has(place)) continue;
    if (isEmptyDirectoryKey(key) && emptyDirectory !== undefined) {
      if (made === undefined) mkdirSync(emptyDirectory, { mode: 0o555 });
      made = emptyDirectory;
      mounts.set(key, emptyDirectory);
    } else if (nullDevice !== undefined && key === place && isNullDevice(root)) {
      mounts.set(key, nullDevice);
    }
  }
  return {
    keep: () => void (made = undefined),
    [Symbol.dispose]: () => void (made !== undefined && rmdirSync(made)),
  };
}

/** By its name in the file system that it was bound from. */
function isNullDevice(root: string): boolean {
  return basename(root) === basename(kNullDevice);
}
