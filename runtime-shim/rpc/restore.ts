// RESTORE: images of a container whose runtime has prepared the root file
// system, the cgroup that we are in, and descriptors under their keys.
import { tcpRuleOfOptions } from '../tcp-rule.js';
import { closeSync, mkdirSync, openSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { kFirstExternalDescriptor, UndoAction_Kind, type ExecuteRequest, type IdMap } from '../../nativecore/index.js';
import type { PartialMessage } from '../../oci-spec/protobuf/codec.js';
import { refuseObjections } from '../checkpoint-request.js';
import {
  kNullDevice,
  missingCgroups,
  parseDescriptors,
  readCgroupLayout,
  type CgroupLayout,
} from '../container/index.js';
import { ConsoleChannel } from '../console.js';
import { LogFile, timingLine, type CoreSession } from '../core-session.js';
import { compilePlan, decodeImages, kConsoleChannel } from '../engine/index.js';
import { fileError } from '../errors/index.js';
import { openDeletedFileImages } from '../deleted-files.js';
import { executePlan, startExecutor } from '../execute-plan.js';
import { collectClaims } from '../image-claims.js';
import { ImageInput } from '../image-input.js';
import { restoreDefaults } from '../restore-request.js';
import { kernelFacts, writeRestoreStats } from '../restore-steps.js';
import { provideMasks } from './masks.js';
import { kCloneNewNet, parseExternal, refuseUnbuiltOptions, type RpcDirectories } from './options.js';
import type { Notify, RpcOptions } from './packets.js';

/**
 * Returns the host pid of the restored root, which goes to the nearest subreaper above us. `parked` is told of it
 * while nothing runs yet, and may throw: then nothing has been restored.
 */
export async function restore(
  options: RpcOptions,
  directories: RpcDirectories,
  notify: Notify,
  circumstances: { readonly signal?: AbortSignal; readonly parked?: (hostPid: number) => void } = {},
): Promise<number> {
  refuseUnbuiltOptions(options);
  const goal = `restore the process tree in ${directories.imagePath}`;
  using images = new ImageInput(directories.imagePath);
  const model = decodeImages(images);
  const layout = readCgroupLayout();
  const mounts = externalMountsOf(options, layout);
  using masks = provideMasks(model, options, mounts);
  using channel =
    options.orphan_pts_master === true && options.notify_scripts === true ? new ConsoleChannel() : undefined;
  using inheritance = inherit(options, images, channel?.innerFd);
  const claims = collectClaims(model);
  const compiled = compilePlan(model, {
    ...(options.root === undefined || !claims.ownNamespaces.has('mnt') ? {} : { rootfs: options.root }),
    externalMounts: mounts,
    externalFileMounts: new Set([...mounts].filter(([, path]) => isFile(path)).map(([key]) => key)),
    inherited: inheritance.inherited,
    joinNamespaces: inheritance.joinNamespaces,
    emptyNetNamespace: ((options.empty_ns ?? 0) & kCloneNewNet) !== 0,
    shellJob: options.shell_job === true,
    tcp: tcpRuleOfOptions(options),
    kernel: kernelFacts(),
  });
  refuseObjections(goal, compiled.objections);
  using log = new LogFile(directories.workPath, directories.logName);
  await using core = startExecutor({
    goal,
    log,
    images,
    plan: compiled.plan,
    externals: inheritance.ownFds,
    signal: circumstances.signal,
  });
  notify('pre-restore');
  const cgroups = await enterCgroups(options, layout, core);
  const { parked, timings } = await executePlan(core, {
    plan: compiled.plan,
    images,
    log,
    deadlineMs: restoreDefaults.deadlineMs,
    orders: { ...cgroups, uidMap: claims.uidMap.map(toIdMap), gidMap: claims.gidMap.map(toIdMap) },
    publish: async ({ rootHostPid: hostPid }) => {
      circumstances.parked?.(hostPid);
      // All tasks wait: the namespaces are there, and nothing runs in them.
      notify('setup-namespaces', { hostPid });
      notify('post-setup-namespaces');
      await channel?.deliver((ownFd) => notify('orphan-pts-master', { ownFd }));
      notify('post-restore', { hostPid });
      notify('pre-resume');
    },
  });
  masks.keep();
  log.write([timingLine(goal, timings)]);
  writeRestoreStats(directories.workPath, compiled.plan, timings, log);
  notify('post-resume');
  return parked.rootHostPid;
}

/** Host paths by key. Clients on cgroup v1 name their own cgroups; those of the container are the ones that we are in. */
function externalMountsOf(options: RpcOptions, layout: CgroupLayout): Map<string, string> {
  const mounts = new Map(options.ext_mnt.map(({ key, val }) => [key, val] as const));
  for (const { kind, inner, key } of options.external.map(parseExternal)) if (kind === 'mnt') mounts.set(inner, key);
  if (layout.version === 2) return mounts;
  for (const [key, path] of mounts) {
    const mount = [...layout.mounts.values()].find(
      ({ mountPoint }) =>
        basename(mountPoint) === basename(key) && (path === mountPoint || path.startsWith(`${mountPoint}/`)),
    );
    if (mount !== undefined) mounts.set(key, join(mount.mountPoint, mount.own));
  }
  return mounts;
}

interface Inheritance {
  readonly inherited: Map<string, number>;
  readonly joinNamespaces: Map<string, number>;
  /** In the order of the core's numbers. */
  readonly ownFds: readonly number[];
  [Symbol.dispose](): void;
}

/** Descriptors of ours, by key: what the client left open for us, namespaces to join, standard streams. */
function inherit(options: RpcOptions, images: ImageInput, consoleFd: number | undefined): Inheritance {
  const ownFds: number[] = [];
  const opened: number[] = [];
  const toCore = (ownFd: number): number => kFirstExternalDescriptor + ownFds.push(ownFd) - 1;
  const inherited = new Map<string, number>();
  const joinNamespaces = new Map<string, number>();
  const descriptors = images.read('descriptors.json');
  if (descriptors !== undefined) {
    parseDescriptors(Buffer.from(descriptors).toString('utf8')).forEach((name, ownFd) => {
      if (name !== kNullDevice) inherited.set(name, toCore(ownFd));
    });
  }
  if (consoleFd !== undefined) inherited.set(kConsoleChannel, toCore(consoleFd));
  for (const { key, fd } of options.inherit_fd) inherited.set(key, toCore(fd));
  for (const [kind, key] of [
    ['net', 'extRootNetNS'],
    ['pid', 'extRootPidNS'],
  ] as const) {
    const descriptor = inherited.get(key);
    if (descriptor !== undefined) joinNamespaces.set(kind, descriptor);
  }
  try {
    for (const { ns, ns_file: path } of options.join_ns) {
      let ownFd: number;
      try {
        ownFd = openSync(/^\d+$/.test(path) ? `/proc/${path}/ns/${ns}` : path, 'r');
      } catch (error) {
        throw fileError(`cannot join the ${ns} namespace`, path, error);
      }
      opened.push(ownFd);
      joinNamespaces.set(ns, toCore(ownFd));
    }
    for (const [name, ownFd] of openDeletedFileImages(images)) {
      opened.push(ownFd);
      inherited.set(name, toCore(ownFd));
    }
  } catch (error) {
    for (const fd of opened) closeSync(fd);
    throw error;
  }
  return {
    inherited,
    joinNamespaces,
    ownFds,
    [Symbol.dispose]: () => {
      for (const fd of opened) closeSync(fd);
    },
  };
}

/** runc has moved us where the tree belongs; others name the place (cg_root), which may not exist yet. */
async function enterCgroups(
  options: RpcOptions,
  layout: CgroupLayout,
  core: CoreSession,
): Promise<PartialMessage<ExecuteRequest>> {
  const unified = options.cg_root.find(({ ctrl }) => (ctrl ?? '') === '');
  const mount = layout.mounts.get('');
  if (layout.version !== 2 || unified === undefined || mount === undefined || unified.path === mount.own) return {};
  const directory = join(mount.mountPoint, unified.path);
  const created = missingCgroups(new Map([['', directory]]));
  const undo = [...created].reverse().map((path) => ({
    kind: path === directory ? UndoAction_Kind.REMOVE_CGROUP : UndoAction_Kind.REMOVE_DIRECTORY,
    path,
    inode: 0n,
  }));
  core.send({ prepare: { undo } });
  await core.receive('prepared');
  for (const path of created) mkdirSync(path, { mode: 0o755 });
  return { cgroup2Directory: directory, undo };
}

function toIdMap(map: { readonly inside: number; readonly outside: number; readonly count: number }): IdMap {
  return { inside: map.inside, outside: map.outside, count: map.count };
}

function isFile(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() === false;
}
