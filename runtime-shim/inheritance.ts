// What the restored tree gets from outside: descriptors that the core inherits
// from us, namespaces to join, external mounts; as options for the compiler
// and as descriptors for the core.
import { closeSync } from 'node:fs';
import { kFirstExternalDescriptor, type IdMap } from '../nativecore/index.js';
import type { CgroupPlace } from '../oci-spec/libcontainer-config.js';
import type { SpecIdMap } from '../oci-spec/runtime-config.js';
import {
  cgroupDirectories,
  kNullDevice,
  openNamespaces,
  parseDescriptors,
  restoreExternals,
  type CgroupLayout,
} from './container/index.js';
import { kConsoleChannel, type CompileOptions } from './engine/index.js';
import { openDeletedFileImages } from './deleted-files.js';
import { openUserfaultfdDevice } from './lazy-pages.js';
import type { Bundle } from './bundle.js';
import type { ImageInput } from './image-input.js';

export interface Inheritance {
  readonly compileOptions: Pick<
    CompileOptions,
    | 'externalMounts'
    | 'externalFileMounts'
    | 'inherited'
    | 'joinNamespaces'
    | 'newNamespaces'
    | 'lazyPages'
    | 'userfaultfdDevice'
  >;
  /** In the order of the core's numbers, from kFirstExternalDescriptor. */
  readonly ownFds: readonly number[];
  readonly uidMap: IdMap[];
  readonly gidMap: IdMap[];
  [Symbol.dispose](): void;
}

export function inheritFromBundle(request: {
  readonly bundle: Bundle;
  readonly images: ImageInput;
  readonly layout: CgroupLayout;
  readonly place: CgroupPlace;
  /** Key in the images -> host path. */
  readonly emptyDirectories: ReadonlyMap<string, string>;
  readonly consoleFd: number | undefined;
  readonly lazyPages: boolean;
}): Inheritance {
  const { bundle, images, layout } = request;
  const externals = restoreExternals({
    spec: bundle.spec,
    bundle: bundle.directory,
    rootfs: bundle.rootfs,
    layout,
    cgroupPaths: cgroupDirectories(layout, request.place),
    emptyDirectories: request.emptyDirectories,
  });
  const ownFds: number[] = [];
  const toCore = (ownFd: number): number => kFirstExternalDescriptor + ownFds.push(ownFd) - 1;

  const inherited = streamsByName(images, toCore);
  if (request.consoleFd !== undefined) inherited.set(kConsoleChannel, toCore(request.consoleFd));
  const namespaceFds = openNamespaces(externals.joinNamespaces);
  const joinNamespaces = new Map([...namespaceFds].map(([kind, fd]) => [kind, toCore(fd)] as const));
  // The keys under which CRIU's clients refer to namespaces with a path.
  for (const [kind, key] of [
    ['net', 'extRootNetNS'],
    ['pid', 'extRootPidNS'],
  ] as const) {
    const descriptor = joinNamespaces.get(kind);
    if (descriptor !== undefined) inherited.set(key, descriptor);
  }
  const hasUserNamespace = bundle.spec.linux?.namespaces?.some(({ type }) => type === 'user') === true;
  const deletedFiles = openDeletedFileImages(images);
  for (const [name, fd] of deletedFiles) inherited.set(name, toCore(fd));
  const uffdDevice = request.lazyPages && hasUserNamespace ? openUserfaultfdDevice() : undefined;
  return {
    compileOptions: {
      externalMounts: externals.mounts,
      externalFileMounts: externals.fileMounts,
      inherited,
      joinNamespaces,
      newNamespaces: externals.newNamespaces,
      lazyPages: request.lazyPages,
      ...(uffdDevice === undefined ? {} : { userfaultfdDevice: toCore(uffdDevice) }),
    },
    ownFds,
    uidMap: (bundle.spec.linux?.uidMappings ?? []).map(toIdMap),
    gidMap: (bundle.spec.linux?.gidMappings ?? []).map(toIdMap),
    [Symbol.dispose]: () => {
      for (const fd of [...namespaceFds.values(), ...deletedFiles.values()]) closeSync(fd);
      if (uffdDevice !== undefined) closeSync(uffdDevice);
    },
  };
}

/** Our own standard streams take the places of those that the container had, by their old names. */
function streamsByName(images: ImageInput, toCore: (ownFd: number) => number): Map<string, number> {
  const bytes = images.read('descriptors.json');
  const inherited = new Map<string, number>();
  if (bytes === undefined) return inherited;
  const names = parseDescriptors(Buffer.from(bytes).toString('utf8'));
  names.forEach((name, ownFd) => {
    // The container opens its own /dev/null; two streams may be one file, then the later one counts (2 is where errors go).
    if (name !== kNullDevice) inherited.set(name, toCore(ownFd));
  });
  return inherited;
}

function toIdMap(map: SpecIdMap): IdMap {
  return { inside: map.containerId, outside: map.hostId, count: map.size };
}
