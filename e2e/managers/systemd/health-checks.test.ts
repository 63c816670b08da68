// podman's health checks: timers of systemd, which start podman again and again.
// They are podman's, and go by what its runtime says of the container.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { openFor } from '../../support/open-manager.js';
import { Podman } from '../../support/podman.js';
import { mustRun } from '../../support/run.js';
import { useTestBed } from '../../support/test-bed.js';
import { waitFor } from '../../support/wait.js';

describe("podman's health checks", function () {
  this.timeout(300_000);
  const bed = useTestBed();
  let podman: Podman;

  beforeEach(async function () {
    podman = await openFor(this, bed, ['podman', 'systemd'], () => Podman.openForSystem(join(bed.directory, 'podman')));
  });

  /** Timers and services of the container's checks, "ID.timer" or "ID-HASH.timer". */
  async function unitsOf(id: string): Promise<string> {
    const { stdout } = await mustRun('systemctl', ['list-units', '--all', '--plain', '--no-legend', `${id}*`]);
    return stdout;
  }

  async function becomes(status: string): Promise<void> {
    let seen = '';
    await waitFor(
      `c to be ${status}`,
      async () => {
        seen = await podman.inspect('c', '{{.State.Health.Status}}');
        return seen === status ? true : undefined;
      },
      { seen: () => seen, timeoutMs: 30_000 },
    );
  }

  /** Seen by the timer, not by a check that this test runs. */
  async function isWatched(id: string): Promise<void> {
    assert.match(await unitsOf(id), /\.timer .*active/);
    await podman.must('exec', 'c', 'rm', '-f', '/root/well');
    await becomes('unhealthy');
    await podman.must('exec', 'c', 'touch', '/root/well');
    await becomes('healthy');
  }

  const hasTimer = async (id: string): Promise<boolean> => /\.timer /.test(await unitsOf(id));

  it('are made by timers while a container runs, and on request after a restore', async () => {
    const check = ['--health-cmd', 'test -e /root/well', '--health-interval', '1s', '--health-retries', '1'];
    await podman.start('c', ...check);
    const id = await podman.inspect('c', '{{.Id}}');
    await isWatched(id);
    await podman.must('container', 'checkpoint', '--leave-running', 'c');
    await isWatched(id);
    for (let round = 1; round <= 2; round += 1) {
      await podman.must('container', 'checkpoint', 'c');
      await waitFor('the timer to go', async () => ((await hasTimer(id)) ? undefined : true));
      await podman.must('container', 'restore', 'c');
      await podman.count('c');
      // podman makes the timer when it creates a container, and in no restore: docs/managers.md says so.
      assert.equal(await hasTimer(id), false, 'podman has learnt it');
      assert.equal((await podman.run('healthcheck', 'run', 'c')).exitCode, 0);
      await becomes('healthy');
      await podman.must('exec', 'c', 'rm', '/root/well');
      assert.equal((await podman.run('healthcheck', 'run', 'c')).exitCode, 1);
      await becomes('unhealthy');
      await podman.must('exec', 'c', 'touch', '/root/well');
    }
    // What podman starts anew is watched again.
    await podman.must('restart', '-t', '0', 'c');
    await isWatched(id);
    await podman.must('rm', '-f', '-t', '0', 'c');
    await waitFor('all units to go', async () => ((await unitsOf(id)) === '' ? true : undefined));
  });
});
