// The core is made to kill itself, or to fail, at every single step that it
// names: what the storm finds by luck is looked for here one by one.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { cgroupDirectories, processesIn } from '../support/cgroups.js';
import type { Container } from '../support/container.js';
import { coreProgram, stasisProgram } from '../support/paths.js';
import { isAlive } from '../support/processes.js';
import { startPipeline } from '../support/pipeline.js';
import { lastLine, run } from '../support/run.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';

interface Step {
  readonly number: number;
  readonly name: string;
  /** `hazard`: a stretch of microseconds in which the death of a tracer does hurt; documented with the step. */
  readonly kind: string;
}

function stepsOf(command: 'capture' | 'execute'): Step[] {
  const text = existsSync(coreProgram) ? execFileSync(coreProgram, ['steps', command], { encoding: 'utf8' }) : '';
  return text
    .trim()
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
    .map(([number, name, kind]) => ({ number: Number(number), name: name ?? '', kind: kind ?? '-' }));
}

const modes = [
  { variable: 'STASIS_FAULT_STEP', what: 'dies' },
  { variable: 'STASIS_FAULT_FAIL', what: 'fails' },
] as const;

describe('the core', function () {
  this.timeout(300_000);
  const bed = useTestBed();

  for (const { variable, what } of modes) {
    it(`${what} at every step of a checkpoint, and the container runs on`, async () => {
      const pipeline = await startPipeline(bed);
      const { container } = pipeline;
      for (const step of stepsOf('capture')) {
        // Killed there, the target is lost by definition; failing there is harmless and is tried.
        if (variable === 'STASIS_FAULT_STEP' && step.kind === 'hazard') continue;
        const images = container.imagesDirectory(`images-${step.number}`);
        const args = ['--root', container.stateRoot, ...container.checkpointArgs(images, ['--leave-running'])];
        const result = await run(stasisProgram, args, {
          env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', [variable]: String(step.number) },
        });
        const label = `step ${step.number} (${step.name})`;
        if (step.kind !== 'conditional') {
          assert.notEqual(result.exitCode, 0, `${label}: the checkpoint succeeded all the same`);
          assert.match(lastLine(result.stderr), /cannot \w+/, `${label}: no sentence in "${lastLine(result.stderr)}"`);
          assert.equal(existsSync(join(images, 'inventory.img')), false, `${label}: the images look complete`);
        }
        await waitFor(`${label}: the container to be left alone`, () => untouched(container));
        await pipeline.goesOn();
      }
      pipeline.isGapless();
    });

    it(`${what} at every step of a restore, and nothing is left`, async () => {
      const pipeline = await startPipeline(bed);
      const { container } = pipeline;
      const images = await container.checkpoint();
      for (const step of stepsOf('execute')) {
        const result = await container.runDetached(container.restoreArgs(images), stasisProgram, {
          [variable]: String(step.number),
        });
        const label = `step ${step.number} (${step.name})`;
        if (result.exitCode === 0) {
          // A step that this container does not need.
          await pipeline.goesOn();
          await container.must(['delete', '--force', container.id]);
          continue;
        }
        assert.match(lastLine(result.stderr), /cannot \w+/, `${label}: no sentence in "${lastLine(result.stderr)}"`);
        await waitFor(`${label}: nothing to be left`, () => nothingLeft(container), {
          seen: () =>
            `processes ${processesIn(container.cgroupPath).join(' ')}, cgroups ${cgroupDirectories(container.cgroupPath).join(' ')}`,
        });
      }
      await container.restore();
      await pipeline.goesOn();
    });

    it(`${what} at every step of a prepared restore and its start, and nothing is left`, async () => {
      const pipeline = await startPipeline(bed);
      const { container } = pipeline;
      const images = await container.checkpoint();
      for (const step of stepsOf('execute')) {
        const label = `step ${step.number} (${step.name})`;
        const result = await container.runDetached(container.restoreArgs(images, ['--prepare']), stasisProgram, {
          [variable]: String(step.number),
        });
        if (result.exitCode === 0) {
          const started = await container.stasis(['start', container.id], { timeoutMs: 20_000 });
          if (step.name === 'committed') assert.equal(started.exitCode, 0, `${label}: ${started.stderr}`);
        } else
          assert.match(lastLine(result.stderr), /cannot \w+/, `${label}: no sentence in "${lastLine(result.stderr)}"`);
        // From the commit on, and where this container does not need the step, it runs for good.
        if (
          processesIn(container.cgroupPath).filter(isAlive).length > 0 &&
          (/^(committed|detach_next)$/.test(step.name) || step.kind === 'connections')
        ) {
          await pipeline.goesOn();
          await container.must(['delete', '--force', container.id]);
          pipeline.forgetFuture();
        }
        await waitFor(`${label}: nothing to be left`, () => nothingLeft(container), {
          seen: () =>
            `processes ${processesIn(container.cgroupPath).join(' ')}, cgroups ${cgroupDirectories(container.cgroupPath).join(' ')}`,
        });
      }
      await container.restore('images', ['--prepare']);
      await container.must(['start', container.id]);
      await pipeline.goesOn();
    });
  }
});

function untouched(container: Container): true | undefined {
  try {
    container.assertUntouched();
    return true;
  } catch {
    return undefined;
  }
}

function nothingLeft(container: Container): true | undefined {
  const directory = join(container.stateRoot, container.id);
  const processes = processesIn(container.cgroupPath).filter(isAlive);
  if (processes.length > 0 || cgroupDirectories(container.cgroupPath).length > 0) return undefined;
  return !existsSync(directory) || readdirSync(directory).length === 0 ? true : undefined;
}
