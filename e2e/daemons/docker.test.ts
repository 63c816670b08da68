// docker, unmodified and experimental, with stasis as its runtime: what its
// users type.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { Docker } from '../support/docker.js';
import { counter } from '../support/podman.js';
import { openFor } from '../support/open-manager.js';
import { stasisProgram } from '../support/paths.js';
import { mustRun } from '../support/run.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';
import { assertWithoutGap } from '../support/counting.js';

describe('docker', () => {
  const bed = useTestBed();
  let docker: Docker;

  beforeEach(async function () {
    docker = await openFor(this, bed, ['daemons'], () => Docker.open());
  });

  async function start(name: string, script = counter, ...options: readonly string[]): Promise<void> {
    await docker.must('run', '--detach', '--name', name, '--network', 'host', ...options, 'box', 'sh', '-c', script);
  }

  const status = async (name: string): Promise<string> => await docker.inspect(name, '{{.State.Status}}');
  const pid = async (name: string): Promise<string> => await docker.inspect(name, '{{.State.Pid}}');

  it('checkpoints a container that runs on, and lists and removes its checkpoints', async () => {
    await start('web');
    await docker.count('web');
    const before = await pid('web');
    for (const name of ['one', 'two']) {
      await docker.must('checkpoint', 'create', '--leave-running', 'web', name);
      assert.equal(await pid('web'), before);
      assertWithoutGap(await docker.count('web'));
    }
    assert.match(await docker.must('checkpoint', 'ls', 'web'), /^one$[^]*^two$/m);
    await docker.must('checkpoint', 'rm', 'web', 'one');
    assert.doesNotMatch(await docker.must('checkpoint', 'ls', 'web'), /^one$/m);
  });

  it('checkpoints, starts from the checkpoint, and uses every other verb', async () => {
    await start('web');
    for (let round = 1; round <= 3; round += 1) {
      await docker.count('web');
      await docker.must('checkpoint', 'create', 'web', `cp${round}`);
      await waitFor('the container to end', async () => ((await status('web')) === 'exited' ? true : undefined));
      await docker.forgetCheckpoints();
      await docker.must('start', '--checkpoint', `cp${round}`, 'web');
      assert.equal(await status('web'), 'running');
      assertWithoutGap(await docker.count('web'));
      assert.match(await docker.must('exec', 'web', 'ps'), /sh -c trap/);
      assert.match(await docker.must('top', 'web'), /sh -c trap/);
      await docker.must('pause', 'web');
      assert.equal(await status('web'), 'paused');
      await docker.must('unpause', 'web');
    }
    await docker.count('web');
    await docker.must('stop', 'web');
    assert.equal(await docker.inspect('web', '{{.State.ExitCode}}'), '7');
    await docker.must('rm', 'web');
  });

  it('keeps checkpoints in another directory, which docker itself starts none from', async () => {
    await start('web');
    await docker.count('web');
    const elsewhere = ['--checkpoint-dir', join(docker.directory, 'elsewhere')];
    await docker.must('checkpoint', 'create', '--leave-running', ...elsewhere, 'web', 'one');
    assert.match(await docker.must('checkpoint', 'ls', ...elsewhere, 'web'), /^one$/m);
    await mustRun(stasisProgram, ['inspect', join(docker.directory, 'elsewhere/one')]);
    await docker.must('stop', '--time', '0', 'web');
    const { exitCode, stderr } = await docker.run('start', '--checkpoint', 'one', ...elsewhere, 'web');
    // Should docker learn it: docs/managers.md says that it cannot.
    assert.notEqual(exitCode, 0);
    assert.match(stderr, /^Error response from daemon: custom checkpointdir is not supported$/m);
  });

  it('carries a terminal', async () => {
    await docker.must('run', '--detach', '--interactive', '--tty', '--name', 'web', '--network', 'host', 'box', 'sh');
    await docker.must('checkpoint', 'create', 'web', 'cp');
    await docker.forgetCheckpoints();
    await docker.must('start', '--checkpoint', 'cp', 'web');
    assert.equal(await status('web'), 'running');
    assert.match(await docker.must('exec', 'web', 'ps'), /^ *1 .*sh$/m);
  });

  it('checkpoints a container on no network, which docker itself does not start from a checkpoint', async () => {
    await docker.must('run', '--detach', '--name', 'web', '--network', 'none', 'box', 'sh', '-c', counter);
    await docker.count('web');
    await docker.must('checkpoint', 'create', '--leave-running', 'web', 'one');
    assertWithoutGap(await docker.count('web'));
    await docker.must('checkpoint', 'create', 'web', 'two');
    await waitFor('the container to end', async () => ((await status('web')) === 'exited' ? true : undefined));
    await docker.forgetCheckpoints();
    const { exitCode, stderr } = await docker.run('start', '--checkpoint', 'two', 'web');
    // Should docker learn it: docs/managers.md says that it cannot.
    assert.notEqual(exitCode, 0);
    assert.match(stderr, /^Error response from daemon: [^\n]*bind-mount \/proc\/0\/ns\/net/);
    await docker.must('start', 'web');
    await docker.count('web');
  });

  it('shows one sentence when a checkpoint is refused, and the container runs on', async () => {
    await start('web', `exec 5<>/dev/ptmx; ${counter}`);
    await docker.count('web');
    const before = await pid('web');
    const { exitCode, stderr } = await docker.run('checkpoint', 'create', 'web', 'cp');
    assert.notEqual(exitCode, 0);
    assert.match(
      stderr,
      /^Error response from daemon: [^\n]*cannot checkpoint[^\n]*: fd 5 of pid \d+ [^\n]*ptmx[^\n]*\n?$/,
    );
    assert.equal(await pid('web'), before);
    assert.equal(await status('web'), 'running');
    assertWithoutGap(await docker.count('web'));
  });

  it('knows the runtime and its version', async () => {
    assert.match(
      await docker.must('info', '--format', '{{.DefaultRuntime}} {{json .Runtimes}}'),
      /^stasis .*org\.stasis\.checkpoint/,
    );
  });
});
