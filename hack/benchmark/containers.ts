// Measures one workload on containers of runc's: `stasis checkpoint` and
// `restore` against `runc checkpoint` and `restore` with CRIU.
import { copyFileSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { removeCgroups } from '../../e2e/support/cgroups.js';
import { Container } from '../../e2e/support/container.js';
import { buildDirectory, peerDirectory, stasisProgram, targetDirectory } from '../../e2e/support/paths.js';
import { peers } from '../../e2e/support/peers.js';
import { clientOf, redisConfiguration, writeRedisLoad } from '../../e2e/support/redis.js';
import { cgroupParent } from '../../e2e/support/run-identity.js';
import { mustRun } from '../../e2e/support/run.js';
import { waitFor } from '../../e2e/support/wait.js';
import { untilReady, type Subject, type Tool } from './measure.js';
import { measurePairs, type TreeRequest, type WorkloadResult } from './pairs.js';
import { StateFile } from './state-file.js';
import type { Workload } from './workloads.js';

/** Not where the images are: root file systems are made of hard links, which do not lead onto a tmpfs. */
const bundles = join(buildDirectory, 'bench', 'containers');

export async function measureContainers(request: TreeRequest): Promise<WorkloadResult> {
  try {
    return await measurePairs(request, () => startContainer(request.workload, bundles));
  } finally {
    removeCgroups(cgroupParent);
  }
}

async function startContainer(workload: Workload, directory: string): Promise<Subject> {
  const container = workload.program === 'redis' ? await startRedis(directory) : await startLoad(workload, directory);
  const state = workload.program === 'redis' ? undefined : new StateFile(join(container.rootfs, 'state'));
  if (state) await untilReady(state);
  const timeoutMs = workload.timeoutMs ?? 120_000;
  // runc finds criu by its name.
  const env = { PATH: `${join(peerDirectory, 'usr/sbin')}:/usr/sbin:/usr/bin:/sbin:/bin` };
  const programOf = (tool: Tool): string => (tool === 'stasis' ? stasisProgram : peers.runc);
  const prepare = (tool: Tool): void => {
    if (tool === 'criu without its cache') rmSync('/run/criu.kdat', { force: true });
  };
  return {
    state,
    checkpoint: async (tool, images, work, live, flags) => {
      prepare(tool);
      const args = ['--image-path', images, '--work-path', work, ...(live ? ['--leave-running'] : []), ...flags];
      const full = ['--root', container.stateRoot, 'checkpoint', ...args, container.id];
      return (await mustRun(programOf(tool), full, { env, timeoutMs })).elapsedMs;
    },
    restore: async (tool, images, work, flags) => {
      prepare(tool);
      const args = ['restore', '--detach', '--bundle', container.bundle, '--image-path', images, '--work-path', work];
      return (await container.mustRunDetached([...args, ...flags, container.id], programOf(tool), env)).elapsedMs;
    },
    engineStartNs: async () => await engineStart(container.outputFile),
    destroy: async () => {
      await container.destroy();
      rmSync(container.bundle, { recursive: true, force: true });
      rmSync(container.outputFile, { force: true });
    },
  };
}

/** Of what `restore --json` wrote: with --detach its output is the container's, behind a pipe. */
async function engineStart(outputFile: string): Promise<bigint> {
  return await waitFor('the timings of the restore', () => {
    const json = /^\{\n[^]*?^\}$/m.exec(readFileSync(outputFile, 'utf8'))?.[0];
    if (json === undefined) return undefined;
    const { timings } = JSON.parse(json) as { timings: { phase: string; startNs: string }[] };
    return BigInt(timings.find(({ phase }) => phase === 'prepare')?.startNs ?? 0);
  });
}

async function startLoad(workload: Workload, directory: string): Promise<Container> {
  const container = await Container.prepare({
    directory,
    id: 'bench',
    streams: 'pipe',
    args: ['/bench_load', '/state', ...workload.load],
    adjust: (spec) => {
      delete spec.process.rlimits;
    },
  });
  copyFileSync(join(targetDirectory, 'bench_load'), join(container.rootfs, 'bench_load'));
  await container.mustRunDetached(['run', '--detach', '--bundle', container.bundle, container.id]);
  return container;
}

async function startRedis(directory: string): Promise<Container> {
  const container = await Container.start({
    directory,
    id: 'bench',
    streams: 'pipe',
    rootfs: 'debian',
    args: ['/usr/bin/redis-server', '/data/redis.conf'],
    files: { 'data/redis.conf': redisConfiguration.replace('appendonly yes', 'appendonly no') },
  });
  const redis = clientOf(container);
  await redis.untilReady();
  await writeRedisLoad(join(container.rootfs, 'data/load'), 800);
  await container.must(['exec', container.id, 'sh', '-c', 'redis-cli --pipe </data/load']);
  return container;
}
