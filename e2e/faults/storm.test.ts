// Kills at random times. During a checkpoint the container must run on,
// unharmed and not frozen; during a restore nothing may be left. How many
// kills: STASIS_STORM_KILLS (hack/storm: 100 of each kind).
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, openSync, closeSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { cgroupDirectories, processesIn } from '../support/cgroups.js';
import type { Container } from '../support/container.js';
import { coreProgram, stasisProgram } from '../support/paths.js';
import { childrenOf, isAlive, programOf } from '../support/processes.js';
import { startPipeline } from '../support/pipeline.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';

const kills = Number(process.env['STASIS_STORM_KILLS'] ?? 5);
const victims = ['the TypeScript process', 'the core', 'both'] as const;
type Victim = (typeof victims)[number];

describe(`a storm of ${kills} kills`, function () {
  this.timeout(60_000 + kills * 10_000);
  const bed = useTestBed();

  for (const victim of victims) {
    it(`of ${victim} during checkpoints leaves the container running`, async () => {
      const pipeline = await startPipeline(bed);
      const { container } = pipeline;
      const usualMs = await timeOf(async () => void (await container.checkpoint('images', ['--leave-running'])));
      for (let kill = 1; kill <= kills; kill++) {
        const images = container.imagesDirectory(`images-${kill}`);
        // Every second one would end the container if it came to its end.
        const flags = kill % 2 === 0 ? [] : ['--leave-running'];
        const delayMs = Math.random() * usualMs * 1.1;
        await runAndKill(container, container.checkpointArgs(images, flags), victim, delayMs);
        const label = `kill ${kill} after ${delayMs.toFixed(1)} ms`;
        await waitFor(`${label}: the container to be left alone`, () => leftAlone(container, images));
        if (processesIn(container.cgroupPath).length === 0) {
          // The checkpoint was complete before the kill: then it is a whole one.
          if (container.hasStateDirectory()) await container.must(['delete', '--force', container.id]);
          await container.mustRunDetached(container.restoreArgs(images));
        }
        await pipeline.goesOn();
        rmSync(images, { recursive: true, force: true });
      }
      pipeline.isGapless();
    });

    it(`of ${victim} during restores leaves nothing behind`, async () => {
      const pipeline = await startPipeline(bed);
      const { container } = pipeline;
      const images = await container.checkpoint();
      const usualMs = await timeOf(async () => void (await container.restore()));
      await pipeline.goesOn();
      await container.checkpoint('again');
      const args = container.restoreArgs(container.imagesDirectory('again'));
      for (let kill = 1; kill <= kills; kill++) {
        const delayMs = Math.random() * usualMs * 1.1;
        await runAndKill(container, args, victim, delayMs);
        await waitFor(
          `kill ${kill} after ${delayMs.toFixed(1)} ms: a whole container or nothing`,
          () => allOrNothing(container),
          {
            seen: () => pictureOf(container),
          },
        );
        if (processesIn(container.cgroupPath).length > 0) {
          await pipeline.goesOn();
          await container.must(['delete', '--force', container.id]);
          // What it wrote since the checkpoint belongs to a future that the next restore does not know.
          pipeline.forgetFuture();
        }
      }
      await container.mustRunDetached(args);
      await pipeline.goesOn();
      assert.ok(existsSync(images));
    });
  }
});

/** Starts stasis and kills the victim after the delay; returns when stasis and its core have gone. */
async function runAndKill(
  container: Container,
  args: readonly string[],
  victim: Victim,
  delayMs: number,
): Promise<void> {
  const output = openSync(container.outputFile, 'a');
  const errors = openSync(join(container.directory, 'storm.err'), 'a');
  const child = spawn(stasisProgram, ['--root', container.stateRoot, ...args], { stdio: ['ignore', output, errors] });
  closeSync(output);
  closeSync(errors);
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  const pid = child.pid ?? 0;
  const started = performance.now();
  // A timer is too coarse for a window of milliseconds: the last stretch is a busy wait.
  if (delayMs > 5) await pause(delayMs - 5);
  while (performance.now() - started < delayMs);
  // Not its other children: a restored container's first process is one of them.
  const cores = childrenOf(pid).filter((child) => programOf(child) === coreProgram);
  if (victim !== 'the TypeScript process') cores.forEach(killHard);
  if (victim !== 'the core') killHard(pid);
  await exited;
  await waitFor('the core to go', () => (cores.some(isAlive) ? undefined : true));
}

function killHard(hostPid: number): void {
  try {
    process.kill(hostPid, 'SIGKILL');
  } catch {
    // It has ended by itself.
  }
}

/** Either untouched and running, or ended with complete images. */
function leftAlone(container: Container, images: string): true | undefined {
  if (processesIn(container.cgroupPath).filter(isAlive).length === 0) {
    return existsSync(join(images, 'inventory.img')) ? true : undefined;
  }
  try {
    container.assertUntouched();
    return true;
  } catch {
    return undefined;
  }
}

/** A container that runs, or no process, no cgroup and no state. */
function allOrNothing(container: Container): true | undefined {
  const directory = join(container.stateRoot, container.id);
  if (processesIn(container.cgroupPath).filter(isAlive).length > 0) {
    if (!existsSync(join(directory, 'state.json'))) return undefined;
    return leftAlone(container, '');
  }
  if (cgroupDirectories(container.cgroupPath).length > 0) return undefined;
  return existsSync(directory) ? undefined : true;
}

function pictureOf(container: Container): string {
  const directory = join(container.stateRoot, container.id);
  return JSON.stringify({
    processes: processesIn(container.cgroupPath),
    cgroups: cgroupDirectories(container.cgroupPath),
    state: existsSync(directory) ? readdirSync(directory) : 'none',
  });
}

async function timeOf(action: () => Promise<void>): Promise<number> {
  const startedAt = performance.now();
  await action();
  return performance.now() - startedAt;
}
