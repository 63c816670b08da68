// Restores in two halves: "restore --prepare" leaves a container that waits as
// the base runtime's own do after "create"; its "start" lets it go on.
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { cgroupDirectories, processesIn } from '../support/cgroups.js';
import type { Container } from '../support/container.js';
import { isAlive, tracerOf } from '../support/processes.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';
import { assertWithoutGap } from '../support/counting.js';

const counter = ['sh', '-c', 'trap "exit 7" TERM; n=0; while :; do n=$((n + 1)); echo $n; sleep 0.02; done'];

describe('a prepared restore', () => {
  const bed = useTestBed();

  async function prepared(): Promise<{ container: Container; count: number }> {
    const container = await bed.start({ args: counter });
    await container.waitForOutput(/^3$/m);
    await container.checkpoint();
    const count = lastNumber(container);
    await container.restore('images', ['--prepare', '--pid-file', join(bed.directory, 'pid')]);
    assert.equal((await container.state()).status, 'created');
    assert.equal(lastNumber(container), count, 'it has run before it was started');
    return { container, count };
  }

  for (const through of ['stasis', 'runc'] as const) {
    it(`waits until ${through} starts it, and is as any other container then`, async () => {
      const { container, count } = await prepared();
      const pid = await container.initPid();
      const started = await container[through](['start', container.id]);
      assert.equal(started.exitCode, 0, started.stderr);
      await container.waitForOutput(new RegExp(`^${count + 3}$`, 'm'));
      assertWithoutGap(numbers(container));
      assert.deepEqual(await container.state().then(({ status, pid }) => ({ status, pid })), {
        status: 'running',
        pid,
      });
      await waitFor('the core to go', () => (tracerOf(pid) === 0 ? true : undefined));
      container.assertUntouched();
      const again = await container[through](['start', container.id]);
      assert.notEqual(again.exitCode, 0, 'it was started twice');
      await container.cycle();
      await container.kill('TERM');
    });
  }

  it('is refused a checkpoint, a second restore, and is deleted before its start without a trace', async () => {
    const { container } = await prepared();
    const pid = await container.initPid();
    const refused = await container.stasis(container.checkpointArgs(container.imagesDirectory('no')));
    assert.match(refused.stderr, /it has not been started/);
    const taken = await container.runDetached(container.restoreArgs(container.imagesDirectory(), ['--prepare']));
    assert.match(taken.stderr, /already exists/);
    await container.must(['delete', container.id]);
    await nothingLeft(container, pid);
    await container.restore();
  });

  it('is killed before its start, and deleted', async () => {
    const { container } = await prepared();
    const pid = await container.initPid();
    await container.kill('KILL');
    await waitFor('the container to be stopped', async () =>
      (await container.state()).status === 'stopped' ? true : undefined,
    );
    await container.must(['delete', container.id]);
    await nothingLeft(container, pid);
  });

  it('is deleted by force before its start', async () => {
    const { container } = await prepared();
    const pid = await container.initPid();
    await container.must(['delete', '--force', container.id]);
    await nothingLeft(container, pid);
  });

  for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
    it(`vanishes when the core that holds it gets ${signal}`, async () => {
      const { container } = await prepared();
      const pid = await container.initPid();
      process.kill(tracerOf(pid), signal);
      await nothingLeft(container, pid);
      assert.equal(existsSync(join(bed.directory, 'pid')), false, 'the pid file is left');
      await container.restore();
    });
  }

  it('keeps nothing of the restore busy while it waits', async () => {
    const { container } = await prepared();
    const descriptors = `/proc/${tracerOf(await container.initPid())}/fd`;
    const open = readdirSync(descriptors).map((fd) => readlinkSync(join(descriptors, fd)));
    assert.deepEqual(
      open.filter((path) => path.startsWith(bed.directory)),
      [join(container.stateRoot, container.id, 'exec.fifo')],
    );
    await container.must(['start', container.id]);
    await container.kill('TERM');
  });
});

function numbers(container: Container): number[] {
  return container.output().trimEnd().split('\n').map(Number);
}

function lastNumber(container: Container): number {
  return numbers(container).at(-1)!;
}

async function nothingLeft(container: Container, initPid: number): Promise<void> {
  await waitFor('nothing to be left', () =>
    !isAlive(initPid) &&
    processesIn(container.cgroupPath).length === 0 &&
    cgroupDirectories(container.cgroupPath).length === 0 &&
    !container.hasStateDirectory()
      ? true
      : undefined,
  );
}
