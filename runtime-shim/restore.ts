// THE restore sequence: everything is checked before anything is made; what is
// made is undone by the core (or its janitor) unless the container is
// released; release is the last act, when all the world already knows of it.
// A prepared restore leaves that act to the core, which waits for the `start`.
import { configuredTcpRule, decideTcpRule } from './tcp-rule.js';
import { compilePlan, containerFilter, decodeImages, type CompileOptions } from './engine/index.js';
import {
  baseRuntimeVersion,
  checkContainerId,
  checkPolicy,
  defaultStateRoot,
  findBaseRuntime,
  missingSources,
  readCgroupLayout,
  refuseCrunOnVersion1,
} from './container/index.js';
import { LogFile, timingLine } from './core-session.js';
import { criuConfigurationOf } from './criu-configuration.js';
import { collectClaims, emptyDirectoryKeys } from './image-claims.js';
import { ImageInput } from './image-input.js';
import { refuseObjections } from './checkpoint-request.js';
import { readBundle, refuseConsoleMismatch } from './bundle.js';
import { ConsoleChannel, ConsoleSocket } from './console.js';
import { executePlan, startExecutor } from './execute-plan.js';
import { inheritFromBundle } from './inheritance.js';
import { refuseLazyPages } from './lazy-pages.js';
import { NewContainer } from './new-container.js';
import { PhaseClock } from './phase-clock.js';
import { kernelFacts, writeRestoreStats } from './restore-steps.js';
import { emptyDirectoryOf, placeOfCgroup, scopeOfContainer } from './state-files.js';
import type { RestoredContainer, RestoreRequest } from './restore-request.js';

export async function restoreContainer(asked: RestoreRequest): Promise<RestoredContainer> {
  const goal = `restore container ${JSON.stringify(asked.id)}`;
  const clock = new PhaseClock();
  clock.enter('read');
  checkContainerId(asked.id);
  const base = findBaseRuntime();
  // It answers while we read.
  const answer = baseRuntimeVersion(base);
  // Awaited below; if what we read fails before, that failure is the one to tell.
  answer.catch(() => undefined);
  const bundle = readBundle(asked.bundle);
  refuseConsoleMismatch(bundle, goal, asked);
  using images = new ImageInput(asked.imagePath);
  const model = decodeImages(images);
  clock.enter('check');
  refuseObjections(goal, [
    ...checkPolicy(collectClaims(model), bundle.spec),
    ...missingSources(bundle.spec, bundle.directory),
  ]);

  const layout = readCgroupLayout();
  const version = await answer;
  if (version.family === 'crun') refuseCrunOnVersion1(`cannot ${goal}`);
  const configured = criuConfigurationOf(bundle.spec.annotations, version.family);
  const request = { ...asked, root: asked.root ?? defaultStateRoot(version.family, process.env) };
  const scope = scopeOfContainer(version.family, bundle, request);
  const place = placeOfCgroup(version.family, bundle, request.id, scope);
  const emptyDirectory = emptyDirectoryOf(version.family, request);
  const emptyDirectories = new Map(emptyDirectoryKeys(model).map((key) => [key, emptyDirectory]));
  using consoleSocket = request.consoleSocket === undefined ? undefined : new ConsoleSocket(request.consoleSocket);
  const terminal = bundle.spec.process?.terminal === true;
  using channel = terminal ? new ConsoleChannel() : undefined;
  using inheritance = inheritFromBundle({
    bundle,
    images,
    layout,
    place,
    emptyDirectories,
    consoleFd: channel?.innerFd,
    lazyPages: request.lazyPages === true,
  });
  clock.enter('compile');
  const kernel = kernelFacts();
  const compiled = compilePlan(model, {
    ...inheritance.compileOptions,
    rootfs: bundle.rootfs,
    yardDirectory: NewContainer.yardOf(request),
    emptyNetNamespace: true,
    shellJob: configured.shell_job ?? request.shellJob,
    tcp: decideTcpRule(goal, configuredTcpRule(configured) ?? asked.tcp, bundle.spec.annotations),
    kernel,
  } satisfies CompileOptions);
  refuseObjections(goal, compiled.objections);
  if (request.lazyPages === true) refuseLazyPages(goal, compiled.plan, kernel.userfaultfd);

  clock.enter('start');
  using log = new LogFile(request.workPath ?? request.imagePath, 'restore.log');
  await using core = startExecutor({
    goal,
    log,
    images,
    plan: compiled.plan,
    externals: inheritance.ownFds,
    signal: request.signal,
    onProgress: request.onProgress,
  });
  // The claim to the id comes with the core's promise to take everything back, however we end.
  await using container = await NewContainer.create({
    request,
    bundle,
    version,
    place,
    scope,
    emptyDirectory: emptyDirectories.size === 0 ? undefined : emptyDirectory,
    seccompFilter: containerFilter(model),
    layout,
    core,
  });
  const { parked, timings } = await executePlan(core, {
    plan: compiled.plan,
    images,
    log,
    deadlineMs: request.deadlineMs,
    clock,
    lazyPages: request.lazyPages === true,
    orders: { ...container.executeRequest(), uidMap: inheritance.uidMap, gidMap: inheritance.gidMap },
    keep: request.prepare === true,
    meanwhile: () => container.prepareToPublish(),
    publish: async (waiting) => {
      // Before the pid file: whoever waits for that expects the console to be there.
      if (consoleSocket !== undefined) await channel?.deliver((masterFd) => consoleSocket.send(masterFd));
      await container.publish(waiting);
    },
  });
  container.finish();
  const all = clock.timings(timings);
  log.write([timingLine(goal, all)]);
  writeRestoreStats(request.workPath ?? request.imagePath, compiled.plan, timings, log);
  return {
    initHostPid: parked.rootHostPid,
    base,
    root: request.root,
    masterFd: asked.detach ? undefined : channel?.take(),
    degradations: compiled.degradations,
    timings: all,
  };
}
