// A process tree without a container around it, on the same engine: what
// CRIU's own command line is about.
import { readlinkSync } from 'node:fs';
import { compilePlan, decodeImages } from './engine/index.js';
import { readProcess } from './container/index.js';
import { StasisError } from './errors/index.js';
import { checkpointTree } from './checkpoint.js';
import { refuseObjections, type CheckpointOptions, type CheckpointResult } from './checkpoint-request.js';
import { LogFile } from './core-session.js';
import { executePlan, startExecutor } from './execute-plan.js';
import { ImageInput } from './image-input.js';
import { kernelFacts, writeRestoreStats } from './restore-steps.js';

export async function checkpointProcess(
  request: CheckpointOptions & { readonly hostPid: number },
): Promise<CheckpointResult> {
  const facts = readProcess(request.hostPid);
  if (facts === undefined) {
    throw new StasisError({
      code: 'TASK_GONE',
      message: `cannot checkpoint pid ${request.hostPid}: there is no such process`,
      subject: { hostPid: request.hostPid },
    });
  }
  return await checkpointTree(request, {
    goal: `checkpoint pid ${request.hostPid}`,
    capture: {
      rootHostPid: request.hostPid,
      rootStartTicks: facts.startTicks,
      cgroupDirectories: [],
      freezerFile: '',
      foundPaused: false,
      tmpfsMountPoints: [],
    },
    encode: {
      externalMounts: new Map(),
      externalFiles: new Set(),
      externalNamespaces: new Map(),
      emptyNetNamespace: false,
      rootfs: readlinkSync(`/proc/${request.hostPid}/root`),
      cgroupPaths: new Map(),
    },
    files: [],
  });
}

export interface ProcessRestore {
  readonly imagePath: string;
  readonly workPath: string | undefined;
  readonly shellJob: boolean;
  readonly deadlineMs: number;
  readonly signal?: AbortSignal;
}

/** Returns the host pid of the restored root. */
export async function restoreProcess(request: ProcessRestore): Promise<number> {
  const goal = `restore the process tree in ${request.imagePath}`;
  using images = new ImageInput(request.imagePath);
  const compiled = compilePlan(decodeImages(images), {
    externalMounts: new Map(),
    inherited: new Map(),
    joinNamespaces: new Map(),
    emptyNetNamespace: false,
    shellJob: request.shellJob,
    kernel: kernelFacts(),
  });
  refuseObjections(goal, compiled.objections);
  using log = new LogFile(request.workPath ?? request.imagePath, 'restore.log');
  await using core = startExecutor({
    goal,
    log,
    images,
    plan: compiled.plan,
    signal: request.signal,
  });
  const { parked, timings } = await executePlan(core, {
    plan: compiled.plan,
    images,
    log,
    deadlineMs: request.deadlineMs,
  });
  writeRestoreStats(request.workPath ?? request.imagePath, compiled.plan, timings, log);
  return parked.rootHostPid;
}
