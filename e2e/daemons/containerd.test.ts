// containerd, unmodified, with stasis as the runtime behind its shim, driven by
// its own client as its users type it.
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, rmdirSync } from 'node:fs';
import { join } from 'node:path';
import { boxImage, Containerd, countingInside } from '../support/containerd.js';
import { stasisProgram } from '../support/paths.js';
import { mustRun } from '../support/run.js';
import { openFor } from '../support/open-manager.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';
import { assertWithoutGap } from '../support/counting.js';

describe('containerd', () => {
  const bed = useTestBed();
  let containerd: Containerd;

  beforeEach(async function () {
    containerd = await openFor(this, bed, ['daemons'], () => Containerd.open());
  });

  const ended = async (id: string): Promise<true | undefined> =>
    (await containerd.task(id))?.status === 'RUNNING' ? undefined : true;

  it('writes the images of a task into a directory, and the task runs on', async () => {
    await containerd.start('one', countingInside);
    await containerd.count('one');
    const before = await containerd.task('one');
    const images = join(bed.directory, 'images');
    const work = join(bed.directory, 'work');
    mkdirSync(images);
    await containerd.must('task', 'checkpoint', '--image-path', images, '--work-path', work, 'one');
    assert.deepEqual(await containerd.task('one'), before);
    assertWithoutGap(await containerd.count('one'));
    const files = readdirSync(images, { withFileTypes: true });
    assert.ok(files.every((entry) => entry.isFile()));
    assert.ok(files.some(({ name }) => name === 'inventory.img'));
    assert.deepEqual(readdirSync(work).sort(), ['dump.log', 'stats-dump']);
    await mustRun(stasisProgram, ['inspect', images]);
  });

  it('keeps the checkpoint of a task as an image', async () => {
    await containerd.start('one', countingInside);
    await containerd.count('one');
    await containerd.must('task', 'checkpoint', 'one');
    assert.match(await containerd.must('image', 'ls', '--quiet'), /^containerd\.io\/checkpoint\/one:/m);
    assertWithoutGap(await containerd.count('one'));
  });

  it('ends a task that is checkpointed with --exit', async () => {
    await containerd.start('one', countingInside);
    await containerd.count('one');
    await containerd.must('task', 'checkpoint', '--exit', 'one');
    await waitFor('the task to end', () => ended('one'));
  });

  it('uses every other verb as with runc, before and after a restore', async () => {
    await containerd.start('one', countingInside);
    const looks = async (id: string): Promise<void> => {
      await containerd.count(id);
      assert.match(await containerd.must('task', 'ps', id), /\d/);
      assert.match(await containerd.must('task', 'metrics', id), /memory/);
      await containerd.must('task', 'pause', id);
      assert.equal((await containerd.task(id))?.status, 'PAUSED');
      await containerd.must('task', 'resume', id);
      await containerd.count(id);
    };
    await looks('one');
    await containerd.must('container', 'checkpoint', '--rw', '--image', '--task', 'one', 'saved/one:1');
    await containerd.remove('one');
    await containerd.must('container', 'restore', '--live', '--rw', 'one', 'saved/one:1');
    await looks('one');
  });

  it('restores a container from its checkpoint five times over, under other names', async () => {
    await containerd.start('c0', countingInside);
    let last = 0;
    for (let round = 1; round <= 5; round += 1) {
      const [from, to, image] = [`c${round - 1}`, `c${round}`, `saved/c:${round}`];
      const numbers = await containerd.count(from);
      assertWithoutGap(numbers);
      assert.ok(numbers.length > last);
      last = numbers.length;
      await containerd.must('container', 'checkpoint', '--rw', '--image', '--task', from, image);
      await containerd.remove(from);
      await containerd.must('container', 'restore', '--live', '--rw', to, image);
      assert.equal((await containerd.task(to))?.status, 'RUNNING');
    }
    assertWithoutGap(await containerd.count('c5'));
    await containerd.remove('c5');
    assert.equal(await containerd.must('container', 'ls', '--quiet'), '');
    assert.deepEqual(readdirSync(join(containerd.directory, 'runc/default')), []);
  });

  it('shows one sentence when a checkpoint is refused, and the task runs on', async () => {
    await containerd.start('one', `exec 5<>/dev/ptmx; ${countingInside}`);
    await containerd.count('one');
    const before = await containerd.task('one');
    for (const words of [
      ['task', 'checkpoint', 'one'],
      ['container', 'checkpoint', '--rw', '--task', 'one', 'saved/one:1'],
    ]) {
      const { exitCode, stderr } = await containerd.ctr(...words);
      assert.notEqual(exitCode, 0);
      assert.match(stderr, /^ctr: [^\n]*cannot checkpoint[^\n]*: fd 5 of pid \d+ [^\n]*ptmx[^\n]*\n?$/);
      assert.deepEqual(await containerd.task('one'), before);
      assertWithoutGap(await containerd.count('one'));
    }
  });

  it('shows one sentence when what is mounted into the container is missing, and nothing stays', async () => {
    const volume = join(bed.directory, 'volume');
    mkdirSync(volume);
    const mount = `type=bind,src=${volume},dst=/data,options=rbind:rw`;
    await containerd.start('one', countingInside, '--mount', mount);
    await containerd.count('one');
    await containerd.must('container', 'checkpoint', '--rw', '--image', '--task', 'one', 'saved/one:1');
    await containerd.remove('one');
    rmdirSync(volume);
    const { exitCode, stderr } = await containerd.ctr('container', 'restore', '--live', '--rw', 'two', 'saved/one:1');
    assert.notEqual(exitCode, 0);
    assert.match(stderr, /^ctr: [^\n]*cannot restore[^\n]*volume[^\n]*\n?$/);
    // ctr leaves it to its user to remove what it has made, whatever the runtime.
    assert.deepEqual(await containerd.task('two'), { pid: 0, status: 'CREATED' });
    assert.ok(!existsSync(join(containerd.directory, 'runc/default/two')));
    // With it there again, the same restore succeeds.
    mkdirSync(volume);
    await containerd.remove('two');
    await containerd.must('container', 'restore', '--live', '--rw', 'two', 'saved/one:1');
    assertWithoutGap(await containerd.count('two'));
    assert.match(await containerd.must('image', 'ls', '--quiet'), new RegExp(boxImage));
  });
});
