// DUMP: what a runtime tells CRIU about its container, as a checkpoint of ours.
import { tcpRuleOfOptions } from '../tcp-rule.js';
import { existsSync, readFileSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { checkpointTree } from '../checkpoint.js';
import { checkpointDefaults } from '../checkpoint-request.js';
import { liveTmpfsMounts } from '../checkpoint-steps.js';
import {
  cgroupDirectoryOf,
  freezerOf,
  kNullDevice,
  parseDescriptors,
  readCgroupLayout,
  readProcess,
  type CgroupLayout,
} from '../container/index.js';
import { StasisError } from '../errors/index.js';
import { nameMasks } from './masks.js';
import { BadRequest, kCloneNewNet, parseExternal, refuseUnbuiltOptions, type RpcDirectories } from './options.js';
import type { Notify, RpcOptions } from './packets.js';

export interface DumpCircumstances {
  readonly preDump?: boolean;
  /** Whether the streams of the first process are its own, and not those that its runtime gave it. */
  readonly ownStreams?: boolean;
  readonly signal?: AbortSignal;
}

export async function dump(
  options: RpcOptions,
  directories: RpcDirectories,
  notify: Notify,
  { preDump = false, ownStreams = false, signal }: DumpCircumstances = {},
): Promise<void> {
  refuseUnbuiltOptions(options);
  const hostPid = options.pid ?? 0;
  if (hostPid <= 0) throw new BadRequest('cannot dump: no pid is given, and a client cannot dump itself');
  const facts = readProcess(hostPid);
  if (facts === undefined) {
    throw new StasisError({
      code: 'TASK_GONE',
      message: `cannot checkpoint pid ${hostPid}: there is no such process`,
      subject: { hostPid },
    });
  }
  const layout = readCgroupLayout();
  const cgroupPaths = cgroupPathsOf(hostPid, layout, options.freeze_cgroup);
  const freezer = options.freeze_cgroup === undefined ? undefined : freezerOf(cgroupPaths);
  const externalMounts = new Map(options.ext_mnt.map(({ key, val }) => [key, val] as const));
  const externalNamespaces = new Map<string, string>();
  for (const { kind, inner, key } of options.external.map(parseExternal)) {
    if (kind === 'net' || kind === 'pid') externalNamespaces.set(kind, key);
    if (kind === 'mnt' && inner !== '') externalMounts.set(inner, key === '' ? inner : key);
  }
  if (!sharesOurMounts(hostPid)) nameMasks(hostPid, externalMounts);
  // The client has written it into our directory already; committing images clears such files away.
  const descriptorsPath = join(directories.imagePath, 'descriptors.json');
  const descriptors = existsSync(descriptorsPath) ? readFileSync(descriptorsPath) : undefined;

  // CRIU's scripts of these names belong to dumps, not to pre-dumps.
  if (!preDump) notify('pre-dump');
  await checkpointTree(
    {
      ...checkpointDefaults,
      imagePath: directories.imagePath,
      workPath: directories.workPath,
      logName: directories.logName,
      leaveRunning: options.leave_running === true || preDump,
      preDump,
      trackMemory: options.track_mem === true,
      ...((options.timeout ?? 0) > 0 ? { deadlineMs: options.timeout! * 1000 } : {}),
      ...(signal === undefined ? {} : { signal }),
      ...((options.parent_img ?? '') === '' ? {} : { parentPath: options.parent_img! }),
      encode: {
        shellJob: options.shell_job === true,
        externalUnixSockets: options.ext_unix_sk === true,
      },
    },
    {
      goal: `checkpoint pid ${hostPid}`,
      tcp: tcpRuleOfOptions(options),
      capture: {
        rootHostPid: hostPid,
        rootStartTicks: facts.startTicks,
        cgroupDirectories: options.freeze_cgroup === undefined ? [] : [options.freeze_cgroup],
        freezerFile: freezer?.file ?? '',
        foundPaused: freezer?.isFrozen() ?? false,
        // Those of our own mount namespace are the host's, which a tree in it only uses.
        tmpfsMountPoints: sharesOurMounts(hostPid) ? [] : liveTmpfsMounts(hostPid, externalMounts),
      },
      encode: {
        externalMounts,
        externalFiles: ownStreams ? new Set() : streamsOf(hostPid, descriptors),
        externalNamespaces,
        emptyNetNamespace: ((options.empty_ns ?? 0) & kCloneNewNet) !== 0,
        rootfs: options.root ?? readlinkSync(`/proc/${hostPid}/root`),
        cgroupPaths,
      },
      files: descriptors === undefined ? [] : [{ name: 'descriptors.json', bytes: descriptors }],
      committed: () => void (!preDump && notify('post-dump')),
    },
  );
}

function sharesOurMounts(hostPid: number): boolean {
  return readlinkSync(`/proc/${hostPid}/ns/mnt`) === readlinkSync('/proc/self/ns/mnt');
}

/** Streams of the first process may lead outside, as they did when its runtime started it. */
function streamsOf(hostPid: number, descriptors: Uint8Array | undefined): Set<string> {
  const links = [0, 1, 2].flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/${hostPid}/fd/${fd}`)];
    } catch {
      return [];
    }
  });
  const recorded = descriptors === undefined ? [] : parseDescriptors(Buffer.from(descriptors).toString('utf8'));
  // Pipes only: a file that the container opened itself is its own, whatever its number.
  return new Set(
    [...recorded, ...links.filter((link) => link.startsWith('pipe:'))].filter((link) => link !== kNullDevice),
  );
}

/** Controller -> directory: where memory is counted, and what freezes. */
function cgroupPathsOf(hostPid: number, layout: CgroupLayout, freezeCgroup: string | undefined): Map<string, string> {
  const paths = new Map<string, string>();
  for (const controller of ['memory', '']) {
    const directory = cgroupDirectoryOf(layout, hostPid, controller);
    if (directory !== undefined) paths.set(controller, directory);
  }
  if (freezeCgroup === undefined) return paths;
  return paths.set(existsSync(join(freezeCgroup, 'freezer.state')) ? 'freezer' : '', freezeCgroup);
}
