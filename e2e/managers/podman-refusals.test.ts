// What a person reads on podman's terminal when it cannot be done: one
// sentence that says why, whoever says it; and what is left then.
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { requires } from '../support/lanes.js';
import { openFor } from '../support/open-manager.js';
import { Podman } from '../support/podman.js';
import { mustRun, type CommandResult } from '../support/run.js';
import { mountSmall } from '../support/small-disk.js';
import { alterCore, otherMachines } from '../support/other-machines.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';

describe('podman says in one sentence', () => {
  const bed = useTestBed();
  let podman: Podman;

  beforeEach(async function () {
    podman = await openFor(this, bed, ['podman'], () => Podman.open(join(bed.directory, 'podman')));
  });

  /** podman's own last line; what goes before it is of the runtime, or of podman's attempts. */
  function lastError(result: CommandResult): string {
    assert.notEqual(result.exitCode, 0, 'it has succeeded');
    const errors = result.stderr.split('\n').filter((line) => line.startsWith('Error: '));
    assert.equal(errors.length, 1, result.stderr);
    return errors[0]!;
  }

  async function archiveOf(name: string, ...options: readonly string[]): Promise<string> {
    const archive = join(bed.directory, `${name}.tar`);
    await podman.start(name, ...options);
    await podman.must('container', 'checkpoint', '--export', archive, '--compress', 'none', name);
    await podman.must('rm', '-v', name);
    return archive;
  }

  it('that the disk of the archive is full, and the container can be restored where it was', async () => {
    const small = join(bed.directory, 'small');
    await mountSmall(bed, small);
    await podman.start('c');
    const archive = ['--export', join(small, 'c.tar'), '--compress', 'none'];
    const result = await podman.run('container', 'checkpoint', ...archive, 'c');
    assert.match(lastError(result), /no space left on device$/);
    // The checkpoint was taken before; podman hears of the end of the container from conmon.
    await waitFor('podman to see the end of c', async () =>
      (await podman.inspect('c', '{{.State.Status}}')) === 'running' ? undefined : true,
    );
    await podman.must('container', 'restore', 'c');
    await podman.count('c');
  });

  it('that the disk of the images is full, and the container runs on', async () => {
    await podman.start('c');
    const pid = await podman.inspect('c', '{{.State.Pid}}');
    const images = await podman.imagesDirectory('c');
    await mountSmall(bed, images);
    const result = await podman.run('container', 'checkpoint', 'c');
    lastError(result);
    const [sentence, ...rest] = result.stderr.trimEnd().split('\n');
    assert.match(sentence!, /^cannot write image \S+ in \S+: ENOSPC \(no space left on device\); free space on /);
    assert.equal(rest.length, 1, result.stderr);
    assert.equal(await podman.inspect('c', '{{.State.Status}} {{.State.Pid}}'), `running ${pid}`);
    await podman.count('c');
  });

  it('that the name is in use', async () => {
    const archive = await archiveOf('c');
    await podman.start('taken');
    const result = await podman.run('container', 'restore', '--import', archive, '--name', 'taken');
    assert.match(lastError(result), /name "taken" is already in use/);
    await podman.count('taken');
    await podman.must('container', 'restore', '--import', archive);
    assert.match(lastError(await podman.run('container', 'restore', '--import', archive)), /already in use/);
    await podman.count('c');
  });

  it('that the archive belongs to another runtime', async () => {
    const archive = await archiveOf('c');
    const other = await Podman.open(join(bed.directory, 'other'), 'lib/stasis/runtimes/runc');
    bed.onClose(() => other.close());
    const result = await other.run('container', 'restore', '--import', archive);
    assert.match(lastError(result), /was created with runtime .* and cannot be restored with runtime/);
    assert.equal(await other.must('ps', '-a', '--format', '{{.Names}}'), '');
  });

  it('that the source of a bind mount has gone', async () => {
    const shared = join(bed.directory, 'shared');
    mkdirSync(shared);
    const archive = await archiveOf('c', '-v', `${shared}:/shared`);
    rmSync(shared, { recursive: true });
    const result = await podman.run('container', 'restore', '--import', archive);
    const gone = `the source of the bind mount "/shared", "${shared}", does not exist on this machine`;
    // Not podman's guess about a missing command.
    assert.match(lastError(result), new RegExp(`: cannot restore: ${gone}; make it, or bind something else there`));
    mkdirSync(shared);
    await podman.must('rm', '-f', '-t', '0', 'c');
    await podman.must('container', 'restore', '--import', archive);
    await podman.count('c');
  });

  it('that the image of the container is missing', async () => {
    const archive = await archiveOf('c');
    await podman.must('rmi', 'box');
    const result = await podman.run('container', 'restore', '--import', archive);
    assert.match(lastError(result), /localhost\/box:latest/);
    assert.equal(await podman.must('ps', '-a', '--format', '{{.Names}}'), '');
  });

  describe('and with images', () => {
    /** As another machine would have written them: changed by crit, and without the digests of this one. */
    async function altered(change: (core: string) => string): Promise<string> {
      const archive = await archiveOf('c');
      const unpacked = join(bed.directory, 'unpacked');
      mkdirSync(unpacked);
      await mustRun('tar', ['-xf', archive, '-C', unpacked]);
      await alterCore(join(unpacked, 'checkpoint'), change);
      rmSync(join(unpacked, 'checkpoint/stasis-manifest.json'));
      await mustRun('tar', ['-cf', archive, '-C', unpacked, '.']);
      return archive;
    }

    for (const [what, change, sentence] of otherMachines) {
      it(what, async function () {
        requires(this, 'peers');
        const archive = await altered(change);
        const result = await podman.run('container', 'restore', '--import', archive);
        assert.match(lastError(result), sentence);
        const id = await podman.inspect('c', '{{.Id}}');
        for (const root of ['/run/runc', '/run/crun']) assert.equal(existsSync(join(root, id)), false);
      });
    }
  });
});
