// What an archive of a container holds beside the images: who the container was,
// its spec, its bind mounts, and the files that it changed.
import { lstatSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import {
  formatBindMounts,
  formatConfigDump,
  kManagerAnnotation,
  kNameAnnotation,
  member,
  type BindMount,
  type ConfigDump,
} from '../oci-spec/checkpoint-archive.js';
import { parseJson, stringifyJson } from '../oci-spec/json.js';
import { parseRuntimeConfig } from '../oci-spec/runtime-config.js';
import type { DeviceNumber } from './archive/tar-reader.js';
import { allowsDevice, type Container } from './container/index.js';
import { fileError, type Degradation } from './errors/index.js';
import { ArchiveOutput, type ArchiveExtras } from './archive-output.js';
import type { ArchiveRequest } from './checkpoint-request.js';
import type { OutputFile } from './image-output.js';
import {
  findChanges,
  mountPointsOf,
  overlayOfContainer,
  writeRootfsDiff,
  type RootfsSource,
} from './rootfs-changes.js';

export class ContainerArchive extends ArchiveOutput {
  readonly degradations: Degradation[];

  constructor(
    request: ArchiveRequest,
    extras: ArchiveExtras,
    how: { readonly sync: boolean; readonly signal?: AbortSignal },
    degradations: Degradation[],
  ) {
    super(request.target, extras, how.sync, how.signal);
    this.degradations = degradations;
  }
}

/** Makes the staging directory and the temporary file; the caller disposes of them. */
export function archiveContainer(
  request: ArchiveRequest,
  container: Container,
  how: { readonly sync: boolean; readonly leaveRunning: boolean; readonly signal?: AbortSignal },
): ContainerArchive {
  const degradations: Degradation[] = [];
  const source = request.ignoreRootfs ? undefined : rootfsSource(request, container);
  if (source === undefined && !request.ignoreRootfs) {
    degradations.push({
      code: 'ROOTFS_PARTIAL',
      message: `the root file system ${container.state.rootfs} is a plain directory, and its changed files are not in the archive; name what it was before with --lower`,
      subject: { path: container.state.rootfs },
    });
  }
  // Where it stands still until its files are read, none can change.
  const since = how.leaveRunning && container.status !== 'paused' ? Date.now() : Infinity;
  const spec = parseRuntimeConfig(readFileSync(join(container.state.bundle, 'config.json'), 'utf8'));
  const skip = mountPointsOf(container.state.initHostPid);
  const rootfs =
    source === undefined
      ? undefined
      : async (tarFile: string): Promise<readonly string[]> => {
          const { changes, deleted } = findChanges(source, skip);
          const allows = (device: DeviceNumber): boolean => allowsDevice(spec, device);
          degradations.push(...(await writeRootfsDiff(changes, tarFile, since, allows)));
          return deleted;
        };
  return new ContainerArchive(request, { files: metadata(request, container), rootfs }, how, degradations);
}

function rootfsSource(request: ArchiveRequest, container: Container): RootfsSource | undefined {
  if (request.lower === undefined) return overlayOfContainer(container.state.initHostPid);
  if (statSync(request.lower, { throwIfNoEntry: false })?.isDirectory() !== true) {
    throw fileError(`cannot compare the root file system with ${request.lower}`, request.lower, {
      code: 'ENOTDIR',
      message: 'it is not a directory',
    });
  }
  return { kind: 'compared', root: container.state.rootfs, lower: request.lower };
}

function metadata(request: ArchiveRequest, container: Container): OutputFile[] {
  const { state } = container;
  const { annotations } = state;
  const config: ConfigDump = {
    id: container.id,
    name: annotations['io.kubernetes.cri-o.Name'] ?? annotations[kNameAnnotation] ?? container.id,
    rootfsImage:
      request.image ||
      (annotations['io.kubernetes.cri.image-name'] ?? annotations['io.kubernetes.cri-o.ImageName'] ?? ''),
    rootfsImageRef: annotations['io.kubernetes.cri-o.ImageRef'] ?? '',
    rootfsImageName: request.image || (annotations['io.kubernetes.cri-o.ImageName'] ?? ''),
    runtime: 'stasis',
    createdTime: state.created,
    checkpointedTime: new Date().toISOString(),
  };
  const text = (name: string, content: string): OutputFile => ({ name, bytes: Buffer.from(content) });
  return [
    text(member.config, formatConfigDump(config)),
    text(member.spec, specDump(state.bundle, config.name)),
    text(member.bindMounts, formatBindMounts(bindMounts(state.mounts))),
  ];
}

/** The bundle's config.json, with the name where checkpointctl looks for one. Nothing of it is used by our own restore. */
function specDump(bundle: string, name: string): string {
  const path = join(bundle, 'config.json');
  let spec: { annotations?: Record<string, string> };
  try {
    spec = parseJson(readFileSync(path, 'utf8')) as typeof spec;
  } catch (error) {
    throw fileError(`cannot read the spec of the container`, path, error);
  }
  const annotations = spec.annotations ?? {};
  if (annotations[kManagerAnnotation] === undefined && annotations[kNameAnnotation] === undefined)
    spec.annotations = { ...annotations, [kNameAnnotation]: name };
  return stringifyJson(spec);
}

const notBindMounts: ReadonlySet<string> = new Set([
  '/dev',
  '/dev/shm',
  '/proc',
  '/run',
  '/run/.containerenv',
  '/run/secrets',
  '/sys',
]);

function bindMounts(
  mounts: readonly { readonly device: string; readonly source: string; readonly destination: string }[],
): BindMount[] {
  return mounts.flatMap(({ device, source, destination }): BindMount[] => {
    if (device !== 'bind' || notBindMounts.has(destination)) return [];
    const stat = lstatSync(source, { throwIfNoEntry: false });
    return [
      {
        source,
        destination,
        fileType: stat?.isDirectory() === true ? 'directory' : 'file',
        permissions: (stat?.mode ?? 0o755) & 0o777,
      },
    ];
  });
}
