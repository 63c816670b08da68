// stasis-criu under CRIU's name: an unmodified runc checkpoints and restores
// its own containers through it.
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { criuProgram } from '../support/paths.js';
import type { Container } from '../support/container.js';
import { requires } from '../support/lanes.js';
import { peers } from '../support/peers.js';
import { isAlive } from '../support/processes.js';
import { run } from '../support/run.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';

const counter = ['sh', '-c', 'n=0; while :; do n=$((n + 1)); echo $n; sleep 0.02; done'];

describe('criu swrk', () => {
  const bed = useTestBed();

  /** A search path on which `criu` is ours. */
  function ourCriu(): { PATH: string } {
    const directory = join(bed.directory, 'path');
    mkdirSync(directory, { recursive: true });
    symlinkSync(criuProgram, join(directory, 'criu'));
    return { PATH: `${directory}:/usr/sbin:/usr/bin:/sbin:/bin` };
  }

  async function cycles(container: Container, runc: string): Promise<void> {
    const env = ourCriu();
    const command = async (args: readonly string[]): Promise<void> => {
      const result = await run(runc, ['--root', container.stateRoot, ...args], { env });
      assert.equal(result.exitCode, 0, result.stderr);
    };
    await container.mustRunDetached(['run', '--detach', '--bundle', container.bundle, container.id], runc, env);
    await container.waitForOutput(/^3$/m);
    for (const round of [1, 2]) {
      const images = container.imagesDirectory(`images-${round}`);
      mkdirSync(`${images}.work`, { recursive: true });
      const pid = await container.initPid();
      await command(container.checkpointArgs(images));
      assert.equal(isAlive(pid), false);
      assert.equal(container.hasStateDirectory(), false);
      await container.mustRunDetached(container.restoreArgs(images), runc, env);
      await countsOn(container);
    }
    assert.match(await container.exec(['ps']), /echo/);
    await command(['checkpoint', '--leave-running', '--image-path', container.imagesDirectory('last'), container.id]);
    await countsOn(container);
    const numbers = container.output().trimEnd().split('\n').map(Number);
    assert.deepEqual(
      numbers,
      numbers.map((_, index) => index + 1),
    );
    await command(['delete', '--force', container.id]);
  }

  it('serves an unmodified runc: checkpoint, restore, twice in a row, and its verbs work', async function () {
    requires(this, 'root', 'built');
    await cycles(await bed.prepare({ args: counter, streams: 'pipe' }), 'runc');
  });

  it('serves the newest runc', async function () {
    requires(this, 'root', 'built', 'peers');
    await cycles(await bed.prepare({ args: counter, streams: 'pipe' }), peers.runc);
  });

  it('says why a checkpoint failed, in the answer and in the log, and the container runs on', async function () {
    requires(this, 'root', 'built');
    const container = await bed.prepare({ args: counter, streams: 'pipe' });
    const env = ourCriu();
    await container.mustRunDetached(['run', '--detach', '--bundle', container.bundle, container.id], 'runc', env);
    await container.waitForOutput(/^3$/m);
    const images = container.imagesDirectory();
    mkdirSync(`${images}.work`);
    const result = await run(
      'runc',
      ['--root', container.stateRoot, ...container.checkpointArgs(images, ['--manage-cgroups-mode', 'full'])],
      { env },
    );
    assert.equal(result.exitCode, 1);
    assert.match(result.stderr, /criu failed/);
    assert.match(readFileSync(join(`${images}.work`, 'dump.log'), 'utf8'), /^Error: cannot use manage_cgroups_mode: /m);
    container.assertUntouched();
    await countsOn(container);
  });

  it('wants exactly one socket', async function () {
    requires(this, 'built');
    const result = await run(criuProgram, ['swrk']);
    assert.equal(result.exitCode, 1);
    assert.match(result.stderr, /swrk needs the number of its socket/);
  });
});

async function countsOn(container: Container): Promise<void> {
  const before = container.output().length;
  await waitFor('more numbers', () => (container.output().length > before ? true : undefined), {
    seen: () => container.output().slice(-50),
  });
}
