// THE checkpoint sequence: freeze and capture, encode, commit the images, and
// only then end the target. What a step does in detail is elsewhere.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import {
  connectionLockName,
  encodeImages,
  encodePageMaps,
  encodeStats,
  preDumpInventory,
  type EncodeOptions,
} from './engine/index.js';
import {
  checkpointExternals,
  copyOnWriteBytes,
  findBaseRuntime,
  openContainer,
  readCgroupLayout,
  removeContainer,
  type RuntimeFamily,
} from './container/index.js';
import { refuseObjections, type CheckpointOptions, type CheckpointResult } from './checkpoint-request.js';
import {
  cacheRemark,
  cgroupDirectoriesOf,
  dumpTimings,
  liveTmpfsMounts,
  pageWritingOf,
  writeStats,
} from './checkpoint-steps.js';
import { CoreSession, LogFile, timingLine } from './core-session.js';
import { criuConfigurationOf } from './criu-configuration.js';
import { archiveContainer, type ContainerArchive } from './container-archive.js';
import { awaitLazyPages } from './lazy-pages.js';
import { ImageOutput } from './image-output.js';
import { comparisonRemark, newTrackingToken, openParent, trackingFile } from './incremental.js';
import { PhaseClock } from './phase-clock.js';
import { timingsFile } from './timings-file.js';
import type { TcpRule } from '../oci-spec/tcp-rule.js';
import { configuredTcpRule, connectionsOf, decideTcpRule, newConnectionLock } from './tcp-rule.js';
import type { StasisError } from './errors/index.js';
import type { Capture, CaptureRequest, PageRun } from '../nativecore/index.js';

export interface ContainerCheckpoint extends CheckpointOptions {
  readonly root: string;
  readonly id: string;
}

export async function checkpointContainer(request: ContainerCheckpoint): Promise<CheckpointResult> {
  const verb = request.leaveRunning ? 'checkpoint --leave-running' : 'checkpoint';
  // Looked for first: without it the stopped container could not be cleared away.
  const base = request.leaveRunning ? undefined : findBaseRuntime();
  using container = openContainer({ root: request.root, id: request.id, verb });
  const { state } = container;
  const goal = `checkpoint container ${JSON.stringify(request.id)}`;
  await awaitLazyPages(goal, join(request.root, request.id));
  const externals = checkpointExternals(state, request.root, readCgroupLayout());
  const configured = criuConfigurationOf(state.annotations, familyOf(request));

  using archive = request.archive === undefined ? undefined : archiveContainer(request.archive, container, request);
  const encode = {
    shellJob: configured.shell_job ?? request.encode.shellJob,
    externalUnixSockets: configured.ext_unix_sk ?? request.encode.externalUnixSockets,
  };
  const result = await checkpointTree(
    { ...request, encode },
    {
      ...(archive === undefined ? {} : { output: archive }),
      goal,
      capture: {
        rootHostPid: state.initHostPid,
        rootStartTicks: state.initStartTicks,
        cgroupDirectories: cgroupDirectoriesOf(state.cgroupPaths),
        freezerFile: container.freezer?.file ?? '',
        foundPaused: container.status === 'paused',
        tmpfsMountPoints: liveTmpfsMounts(state.initHostPid, externals.mounts),
      },
      encode: {
        externalMounts: externals.mounts,
        externalFiles: externals.files,
        externalNamespaces: externals.namespaces,
        emptyNetNamespace: true,
        rootfs: state.rootfs,
        cgroupPaths: state.cgroupPaths,
      },
      tcp: decideTcpRule(goal, configuredTcpRule(configured) ?? request.tcp, state.annotations),
      files: [{ name: 'descriptors.json', bytes: Buffer.from(JSON.stringify(state.externalDescriptors)) }],
    },
  );
  if (base !== undefined) {
    // A frozen cgroup without processes still counts as "paused", which cannot be deleted.
    container.freezer?.thaw();
    await removeContainer(base, request.root, container);
  }
  return result;
}

/** By the file that it keeps a container's state in. */
function familyOf({ root, id }: ContainerCheckpoint): RuntimeFamily {
  return existsSync(join(root, id, 'state.json')) ? 'runc' : 'crun';
}

export interface TreeCheckpoint {
  readonly goal: string;
  readonly capture: Pick<
    CaptureRequest,
    'rootHostPid' | 'rootStartTicks' | 'cgroupDirectories' | 'freezerFile' | 'foundPaused' | 'tmpfsMountPoints'
  >;
  readonly encode: Pick<
    EncodeOptions,
    'externalMounts' | 'externalFiles' | 'externalNamespaces' | 'emptyNetNamespace' | 'rootfs' | 'cgroupPaths'
  >;
  /** What is done with TCP connections whose other end is not in the tree. */
  readonly tcp: TcpRule;
  /** Files beside the images. */
  readonly files: readonly { readonly name: string; readonly bytes: Uint8Array }[];
  /** The images are complete, and the tree has not been ended: a failure here leaves it running. */
  readonly committed?: () => void;
  /** The caller's; a directory of images if undefined. */
  readonly output?: ContainerArchive;
}

/** A process tree, whoever it belongs to. */
export async function checkpointTree(request: CheckpointOptions, tree: TreeCheckpoint): Promise<CheckpointResult> {
  const clock = new PhaseClock();
  const workPath = request.workPath ?? tree.output?.staging ?? request.imagePath;
  using log = new LogFile(workPath, request.logName ?? 'dump.log');
  const preDump = request.preDump === true;
  using parent = request.parentPath === undefined ? undefined : openParent(request.imagePath, request.parentPath);
  const trackingToken =
    preDump || (request.leaveRunning && (parent !== undefined || request.trackMemory === true))
      ? newTrackingToken()
      : '';
  using own = tree.output === undefined ? new ImageOutput(request.imagePath, request.sync, parent) : undefined;
  const output = own ?? tree.output!;
  await using core = new CoreSession({
    subcommand: 'capture',
    goal: tree.goal,
    log,
    imagesFd: output.fd,
    ...(parent === undefined ? {} : { externals: [parent.images.fd] }),
    ...(request.signal ? { signal: request.signal } : {}),
    onProgress: request.onProgress,
  });
  clock.enter('capture');
  const connectionLock = request.leaveRunning || tree.tcp !== 'established' ? '' : newConnectionLock();

  core.send({
    capture: {
      version: 1,
      ...tree.capture,
      leaveRunning: request.leaveRunning,
      deadlineMs: request.deadlineMs,
      tmpfsLimitBytes: request.tmpfsLimitBytes,
      writePages: true,
      // A tree that is to end changes nothing meanwhile.
      copyOnWriteBytes: request.leaveRunning ? copyOnWriteBytes(tree.encode.cgroupPaths) : 0n,
      firstPagesId: 1,
      pageCompression: request.pageCompression?.codec ?? '',
      pageCompressionLevel: request.pageCompression?.level ?? 0,
      trackingToken,
      parentToken: parent?.token ?? '',
      parentFiles: [...(parent?.pages.files ?? [])],
      parentTasks: [...(parent?.pages.tasks ?? [])],
      parentObjects: [...(parent?.pages.objects ?? [])],
      preDump,
      connections: connectionsOf[preDump ? 'close' : tree.tcp],
      connectionLock: connectionLock === '' ? '' : connectionLockName(connectionLock),
      pageWriting: pageWritingOf(request.directIo === true, own?.waitsForDisk === true),
    },
  });
  const capture: Capture = await core.receive('captured');
  log.write([...capture.log, ...capture.remarks]);
  clock.enter('encode');
  // While the core writes pages: what cannot be carried must be known before anything is committed.
  const encoded = encodeImages(capture, {
    ...request.encode,
    ...tree.encode,
    leaveRunning: request.leaveRunning,
    tcp: tree.tcp,
    connectionLock,
  });
  if (!preDump) refuseObjections(tree.goal, encoded.objections);
  for (const file of preDump ? [] : [...encoded.files, ...tree.files]) output.write(file);
  if (trackingToken !== '') output.write(trackingFile(trackingToken));

  clock.enter('wait for pages');
  const pageMap = await core.receive('pagesWritten');
  const compared = parent === undefined ? undefined : comparisonRemark(pageMap, parent);
  if (compared !== undefined) log.write([compared]);
  const cached = request.directIo === true ? cacheRemark(pageMap.files) : undefined;
  if (cached !== undefined) log.write([cached]);
  const thawed = request.leaveRunning ? await core.receive('thawed') : undefined;
  output.addPageFiles(pageMap.files);
  for (const file of encodePageMaps(capture, pageMap, parent?.images)) output.write(file);
  const stats = encodeStats({ dump: dumpTimings(pageMap, (thawed ?? pageMap).timings) });
  clock.enter('commit images');
  await output.commit(preDump ? preDumpInventory(capture) : encoded.inventory, [stats]);
  if (thawed?.tracked === true) core.send({ keep: {} });
  tree.committed?.();

  // Not before the commit: until here the target can go on as if nothing had happened.
  const ended = thawed ?? (core.send({ kill: {} }), await core.receive('killed'));
  const timings = clock.timings(ended.timings);
  log.write([timingLine(tree.goal, timings)]);
  writeStats(workPath, stats, log);
  // Beside the images, wherever the log is: they are what somebody will look into.
  if (own !== undefined) writeStats(own.directory, timingsFile(timings), log);
  return {
    imagePath: output.directory,
    imageBytes: output.sizeBytes(),
    summary: encoded.summary,
    degradations: preDump ? [] : [...encoded.degradations, ...(tree.output?.degradations ?? [])],
    remarks: [
      ...capture.remarks,
      ...(compared === undefined ? [] : [compared]),
      ...(cached === undefined ? [] : [cached]),
      ...preDumpRemarks(preDump ? encoded.objections : []),
    ],
    pages: {
      written: pagesOf([...pageMap.tasks, ...pageMap.shared].flatMap(({ runs }) => runs)),
      leftToParent: pagesOf([...pageMap.tasks, ...pageMap.shared].flatMap(({ unchangedRuns }) => unchangedRuns)),
    },
    directIo: request.directIo === true && cached === undefined,
    timings,
  };
}

/** A pre-dump carries memory only, whatever else there is; that the checkpoint would fail is better known now. */
const preDumpRemarks = (objections: readonly StasisError[]): string[] =>
  objections.map(({ message }) => `a checkpoint would fail now: ${message}`);

const pagesOf = (runs: readonly PageRun[]): number => Number(runs.reduce((sum, { pageCount }) => sum + pageCount, 0n));
