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
import { assertWithoutGap } from '../support/counting.js';

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

  /** `second` restores and checkpoints in the second round. */
  async function cycles(container: Container, first: string, second = first): Promise<void> {
    const env = ourCriu();
    let runtime = first;
    const command = async (args: readonly string[]): Promise<string> => {
      const result = await run(runtime, ['--root', container.stateRoot, ...args], { env });
      assert.equal(result.exitCode, 0, result.stderr);
      return result.stdout;
    };
    await container.mustRunDetached(['run', '--detach', '--bundle', container.bundle, container.id], runtime, env);
    await container.waitForOutput(/^3$/m);
    for (const round of [1, 2]) {
      const images = container.imagesDirectory(`images-${round}`);
      mkdirSync(`${images}.work`, { recursive: true });
      const { pid } = JSON.parse(await command(['state', container.id])) as { pid: number };
      await command(container.checkpointArgs(images));
      assert.equal(isAlive(pid), false);
      assert.equal(container.hasStateDirectory(), false);
      if (round === 1) runtime = second;
      await container.mustRunDetached(container.restoreArgs(images), runtime, env);
      await countsOn(container);
    }
    assert.match(await command(['exec', container.id, 'ps']), /echo/);
    await command(['checkpoint', '--leave-running', '--image-path', container.imagesDirectory('last'), container.id]);
    await countsOn(container);
    assertWithoutGap(container.output().trimEnd().split('\n').map(Number));
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

  // crun itself ends other people's processes on v1.
  it('serves an unmodified crun, through libcriu', async function () {
    requires(this, 'root', 'built', 'peers', 'cgroup-v2');
    await cycles(await bed.prepare({ args: counter, streams: 'pipe', base: peers.crun }), peers.crun);
  });

  for (const [from, to] of [
    ['runc', 'crun'],
    ['crun', 'runc'],
  ] as const) {
    it(`serves ${to} with what ${from} has had it write`, async function () {
      requires(this, 'root', 'built', 'peers', 'cgroup-v2');
      const container = await bed.prepare({ args: counter, streams: 'pipe', base: peers[to] });
      await cycles(container, peers[from], peers[to]);
    });
  }

  for (const [runtime, verdict] of [
    ['runc', /criu failed/],
    ['crun', /CRIU checkpointing failed/],
  ] as const) {
    it(`has ${runtime} say why a checkpoint failed, and the container runs on`, async function () {
      requires(this, 'root', 'built', ...(runtime === 'crun' ? (['peers', 'cgroup-v2'] as const) : []));
      const program = runtime === 'crun' ? peers.crun : 'runc';
      const base = runtime === 'crun' ? { base: peers.crun } : {};
      const container = await bed.prepare({ args: counter, streams: 'pipe', ...base });
      const env = ourCriu();
      await container.mustRunDetached(['run', '--detach', '--bundle', container.bundle, container.id], program, env);
      await container.waitForOutput(/^3$/m);
      const images = container.imagesDirectory();
      mkdirSync(`${images}.work`);
      const args = container.checkpointArgs(images, ['--manage-cgroups-mode', 'full']);
      const result = await run(program, ['--root', container.stateRoot, ...args], { env });
      assert.equal(result.exitCode, 1);
      assert.match(result.stderr, verdict);
      const sentence = /Error \(stasis\): cannot use manage_cgroups_mode: /;
      assert.match(readFileSync(join(`${images}.work`, 'dump.log'), 'utf8'), sentence);
      // runc 1.1 names the log; crun, and runc from 1.2 on, quote it.
      if (runtime === 'crun') assert.match(result.stderr, sentence);
      container.assertUntouched();
      await countsOn(container);
    });
  }

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
