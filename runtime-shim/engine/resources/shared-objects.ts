// Which objects of shared memory a capture has, of what kind, and under which
// number they go into images: what the rooms of memory, memfds and segments share.
import type { Capture, MappedFile, SharedMemory } from '../../../nativecore/schema/messages.js';

export type SharedKind = 'anonymous' | 'memfd' | 'segment';

export interface SharedObject {
  readonly raw: SharedMemory;
  readonly kind: SharedKind;
  /** Number of its pagemap-shmem image. */
  readonly shmid: bigint;
}

const objectsOfCapture = new WeakMap<Capture, readonly SharedObject[]>();

/**
 * The objects of a capture with their numbers in images: the id of a segment,
 * else the inode number, unless a segment has that already.
 */
export function sharedObjects(capture: Capture): readonly SharedObject[] {
  let objects = objectsOfCapture.get(capture);
  if (objects !== undefined) return objects;
  const kinds = capture.sharedMemory.map(kindOf);
  const taken = new Set<bigint>();
  capture.sharedMemory.forEach((raw, index) => kinds[index] === 'segment' && taken.add(inodeOf(raw)));
  objects = capture.sharedMemory.map((raw, index) => {
    const kind = kinds[index] as SharedKind;
    if (kind === 'segment') return { raw, kind, shmid: inodeOf(raw) };
    // 32 bits, because that is what the image of a memfd has room for
    let shmid = BigInt.asUintN(32, inodeOf(raw));
    while (taken.has(shmid)) shmid = BigInt.asUintN(32, shmid + 1n);
    taken.add(shmid);
    return { raw, kind, shmid };
  });
  objectsOfCapture.set(capture, objects);
  return objects;
}

function inodeOf(raw: SharedMemory): bigint {
  return raw.stat?.inode ?? 0n;
}

function kindOf({ link }: { readonly link: Uint8Array }): SharedKind {
  const text = Buffer.from(link).toString('latin1');
  if (text.startsWith('/memfd:')) return 'memfd';
  return text.startsWith('/SYSV') ? 'segment' : 'anonymous';
}

/** The object behind a mapping; undefined if it is none of the kernel's own tmpfs. */
export function sharedObjectOf(capture: Capture, file: Pick<MappedFile, 'link' | 'stat'>): SharedObject | undefined {
  return sharedObjects(capture).find(
    ({ raw, kind }) =>
      raw.stat?.device === file.stat?.device && raw.stat?.inode === file.stat?.inode && kind === kindOf(file),
  );
}
