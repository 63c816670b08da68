// Measures `stasis checkpoint` and `restore` next to `runc checkpoint` and
// `restore` with CRIU 4.2, in the same run, alternating, so that what else the
// machine does hits both. Prints medians and ratios; every single value goes to
// build/bench/results.json.
//   hack/bench [--pairs N] [WORKLOAD...]
import { spawnSync } from 'node:child_process';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { join } from 'node:path';
import { removeCgroups } from '../e2e/support/cgroups.js';
import { Container } from '../e2e/support/container.js';
import { buildDirectory, peerDirectory, repository, stasisProgram } from '../e2e/support/paths.js';
import { peers } from '../e2e/support/peers.js';
import { clientOf, redisConfiguration, writeRedisLoad } from '../e2e/support/redis.js';
import { cgroupParent } from '../e2e/support/run-identity.js';
import { mustRun } from '../e2e/support/run.js';
import { readCheckpointStats, sizeOf } from './image-stats.js';
import { mebibytes, milliseconds, renderTable } from './table.js';

const directory = join(buildDirectory, 'bench');
const tools = ['stasis', 'runc + CRIU'] as const;
type Tool = (typeof tools)[number];

interface Sample {
  readonly frozenMs: number;
  readonly checkpointMs: number;
  readonly restoreMs: number;
  readonly imageBytes: number;
}

interface Workload {
  readonly name: string;
  start(id: string): Promise<Container>;
}

const workloads: readonly Workload[] = [
  {
    name: 'idle busybox',
    start: async (id) =>
      await Container.start({ directory, id, streams: 'pipe', args: ['sh', '-c', 'while :; do sleep 1000; done'] }),
  },
  {
    name: 'redis, 200 MB',
    start: async (id) => {
      const container = await Container.start({
        directory,
        id,
        streams: 'pipe',
        rootfs: 'debian',
        args: ['/usr/bin/redis-server', '/data/redis.conf'],
        files: { 'data/redis.conf': redisConfiguration },
      });
      const redis = clientOf(container);
      await redis.untilReady();
      await writeRedisLoad(join(container.rootfs, 'data/load'), 200);
      await container.must(['exec', container.id, 'sh', '-c', 'redis-cli --pipe </data/load']);
      return container;
    },
  },
];

async function main(args: readonly string[]): Promise<void> {
  const pairsAt = args.indexOf('--pairs');
  const pairs = pairsAt < 0 ? 7 : Number(args[pairsAt + 1]);
  const named = workloads.filter(({ name }) => args.some((word) => name.startsWith(word)));
  if (
    spawnSync(process.execPath, [join(buildDirectory, 'ts/hack/peers.js')], { cwd: repository, stdio: 'inherit' })
      .status !== 0
  ) {
    throw new Error('without the peers there is nothing to compare with');
  }
  rmSync(directory, { recursive: true, force: true });
  mkdirSync(directory, { recursive: true });
  const results: Record<string, Record<Tool, Sample[]>> = {};
  for (const workload of named.length > 0 ? named : workloads) {
    results[workload.name] = await measure(workload, pairs);
    report(workload.name, results[workload.name] as Record<Tool, Sample[]>);
  }
  const machine = { kernel: release(), processor: cpus()[0]?.model, processors: cpus().length, node: process.version };
  const file = join(directory, 'results.json');
  writeFileSync(file, JSON.stringify({ machine, pairs, results }, undefined, 2));
  console.log(`\nevery value: ${file}`);
}

/** One container, checkpointed and restored by both in turn; the first round warms up and does not count. */
async function measure(workload: Workload, pairs: number): Promise<Record<Tool, Sample[]>> {
  const samples: Record<Tool, Sample[]> = { stasis: [], 'runc + CRIU': [] };
  const containers: Record<Tool, Container> = {
    stasis: await workload.start('bench-stasis'),
    'runc + CRIU': await workload.start('bench-criu'),
  };
  try {
    for (let round = 0; round <= pairs; round++) {
      // Who goes first changes: neither always finds the caches that the other has filled.
      for (const tool of round % 2 === 0 ? tools : [...tools].reverse()) {
        const sample = await cycle(containers[tool], tool);
        if (round > 0) samples[tool].push(sample);
      }
    }
  } finally {
    for (const container of Object.values(containers)) {
      await container.destroy();
      rmSync(container.bundle, { recursive: true, force: true });
    }
    removeCgroups(cgroupParent);
  }
  return samples;
}

// How long a container stands still is measured on one that goes on: of one that is to end, the two tools do not count
// the same (CRIU until it has ended, stasis until its pages are written).
async function cycle(container: Container, tool: Tool): Promise<Sample> {
  const program = tool === 'stasis' ? stasisProgram : peers.runc;
  // runc finds criu by its name.
  const env = { PATH: `${join(peerDirectory, 'usr/sbin')}:/usr/sbin:/usr/bin:/sbin:/bin` };
  const run = async (args: readonly string[]): Promise<number> =>
    (await mustRun(program, ['--root', container.stateRoot, ...args], { env })).elapsedMs;
  const live = emptyImages(`live-${container.id}`);
  await run(container.checkpointArgs(live, ['--leave-running']));
  const { frozenMs } = readCheckpointStats(`${live}.work`);
  const images = emptyImages(`images-${container.id}`);
  const checkpointMs = await run(container.checkpointArgs(images));
  const restore = await container.mustRunDetached(container.restoreArgs(images), program, env);
  return { frozenMs, checkpointMs, restoreMs: restore.elapsedMs, imageBytes: sizeOf(images) };
}

function emptyImages(name: string): string {
  const images = join(directory, name);
  for (const folder of [images, `${images}.work`]) {
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { recursive: true, mode: 0o700 });
  }
  return images;
}

function report(name: string, samples: Record<Tool, Sample[]>): void {
  const row = (label: string, value: (sample: Sample) => number, format: (value: number) => string): string[] => {
    const [ours, theirs] = tools.map((tool) => median(samples[tool].map(value))) as [number, number];
    return [label, format(ours), format(theirs), (ours / theirs).toFixed(2)];
  };
  console.log(`\n${name}: medians of ${samples.stasis.length} pairs`);
  console.log(
    renderTable([
      ['', ...tools, 'ratio'],
      row('frozen', (sample) => sample.frozenMs, milliseconds),
      row('checkpoint in all', (sample) => sample.checkpointMs, milliseconds),
      row('restore in all', (sample) => sample.restoreMs, milliseconds),
      row('images', (sample) => sample.imageBytes, mebibytes),
    ]),
  );
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((one, other) => one - other);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? (sorted[middle] ?? 0) : ((sorted[middle - 1] ?? 0) + (sorted[middle] ?? 0)) / 2;
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  console.error(`cannot compare: ${(error as Error).message}`);
  process.exitCode = 1;
}
