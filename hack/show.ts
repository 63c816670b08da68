// What hack/quickstart shows: a busybox container that counts in memory and
// writes to a file and through a pipe is checkpointed and restored, and the
// count goes on. Writes to build/show (images and logs stay there); the
// container is removed.
import { mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join, relative } from 'node:path';
import { removeCgroups } from '../e2e/support/cgroups.js';
import { Container } from '../e2e/support/container.js';
import { buildDirectory, repository } from '../e2e/support/paths.js';
import { cgroupParent } from '../e2e/support/run-identity.js';
import { waitFor } from '../e2e/support/wait.js';
import { readCheckpointStats, sizeOf } from './benchmark/image-stats.js';
import { mebibytes, milliseconds, renderTable } from './benchmark/table.js';

const directory = join(buildDirectory, 'show');

// The counter lives in a shell variable; the second half of the pipeline reads
// what the first one writes, so that a checkpoint finds a pipe in use.
const program = `
  count=0
  while :; do
    count=$((count + 1)); echo $count >/data/count; echo "count $count"; sleep 0.05
  done | while read -r line; do echo "$line" >>/data/through-pipe; done
`;

async function main(): Promise<void> {
  rmSync(directory, { recursive: true, force: true });
  mkdirSync(directory, { recursive: true });
  const container = await Container.prepare({ directory, id: 'stasis-quickstart', args: ['sh', '-c', program] });
  try {
    await show(container);
  } finally {
    await container.destroy();
    removeCgroups(cgroupParent);
    rmSync(container.stateRoot, { recursive: true, force: true });
    rmSync(container.bundle, { recursive: true, force: true });
  }
}

async function show(container: Container): Promise<void> {
  const shown = (args: readonly string[]): void => console.log(`\n$ stasis ${args.join(' ')}`);

  const runArgs = ['run', '--detach', '--bundle', container.bundle, container.id];
  shown(runArgs.map(shorten));
  await container.mustRunDetached(runArgs);
  const before = await countAbove(container, 10);
  const pid = await container.initPid();
  console.log(`running as process ${pid}, it has counted to ${before}`);

  // Left running first: how long it stands still can only be told of a container that goes on.
  const live = container.imagesDirectory('images-live');
  mkdirSync(`${live}.work`, { recursive: true, mode: 0o700 });
  const liveArgs = container.checkpointArgs(live, ['--leave-running']);
  shown(liveArgs.map(shorten));
  await container.must(liveArgs);
  const stats = readCheckpointStats(`${live}.work`);
  console.log(
    `it stood still for ${milliseconds(stats.frozenMs)} and counts on: ${await countAbove(container, count(container) + 5)}`,
  );

  const images = container.imagesDirectory();
  mkdirSync(`${images}.work`, { recursive: true, mode: 0o700 });
  const checkpointArgs = container.checkpointArgs(images);
  shown(checkpointArgs.map(shorten));
  const checkpoint = await container.must(checkpointArgs);
  const atCheckpoint = count(container);
  console.log(
    `checkpointed at ${atCheckpoint}; the container is gone: ${container.hasStateDirectory() ? 'no' : 'yes'}`,
  );

  shown(['inspect', shorten(images)]);
  console.log((await container.must(['inspect', images])).stdout);

  const restoreArgs = container.restoreArgs(images);
  shown(restoreArgs.map(shorten));
  const restore = await container.mustRunDetached(restoreArgs);
  const after = await countAbove(container, atCheckpoint + 10);
  const newPid = await container.initPid();
  console.log(`running again as process ${newPid}, it has counted on to ${after}`);
  assertGapless(container);
  console.log('every number went through the pipe once and in order');

  const stopped = readCheckpointStats(`${images}.work`);
  console.log(
    `\n${renderTable([
      ['frozen', 'checkpoint in all', 'pages', 'images', 'restore in all'],
      [
        milliseconds(stats.frozenMs),
        milliseconds(checkpoint.elapsedMs),
        String(stopped.pagesWritten),
        mebibytes(sizeOf(images)),
        milliseconds(restore.elapsedMs),
      ],
    ])}\n`,
  );
  console.log(`images: ${shorten(images)}`);
  console.log(`logs:   ${shorten(images)}.work`);
}

function count(container: Container): number {
  try {
    return Number(readFileSync(join(container.rootfs, 'data/count'), 'utf8'));
  } catch {
    return 0; // not written yet
  }
}

async function countAbove(container: Container, bound: number): Promise<number> {
  return await waitFor(`the container to count above ${bound}`, () => {
    const now = count(container);
    return now > bound ? now : undefined;
  });
}

function assertGapless(container: Container): void {
  const lines = readFileSync(join(container.rootfs, 'data/through-pipe'), 'utf8').trimEnd().split('\n');
  lines.forEach((line, index) => {
    if (line !== `count ${index + 1}`) throw new Error(`line ${index + 1} of the pipe's output is "${line}"`);
  });
}

function shorten(path: string): string {
  return path.startsWith(repository) ? relative(repository, path) : path;
}

try {
  await main();
} catch (error) {
  console.error(`cannot show a checkpoint: ${(error as Error).message}`);
  process.exitCode = 1;
}
