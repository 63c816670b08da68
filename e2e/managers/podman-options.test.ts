// podman's less usual options and settings, each with the command line of the
// runtime that it leads to.
import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { hasController } from '../support/cgroups.js';
import { requires } from '../support/lanes.js';
import { counter, Podman, type PodmanSettings } from '../support/podman.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';
import { assertWithoutGap } from '../support/counting.js';

describe('podman, with its less usual options,', () => {
  const bed = useTestBed();
  let podman: Podman;

  async function open(settings: PodmanSettings = {}): Promise<void> {
    const opened = await Podman.open(join(bed.directory, 'podman'), 'bin/stasis', settings);
    bed.onClose(() => opened.close());
    podman = opened;
  }

  beforeEach(function () {
    this.timeout(60_000);
    requires(this, 'root', 'built', 'podman');
  });

  it('makes images and pre-checkpoints of a container that runs on', async () => {
    await open();
    await podman.start('c');
    const pid = await podman.inspect('c', '{{.State.Pid}}');
    await podman.must('container', 'checkpoint', '--leave-running', '--create-image', 'warm', 'c');
    await podman.must('container', 'checkpoint', '--pre-checkpoint', '--leave-running', 'c');
    assert.equal(await podman.inspect('c', '{{.State.Pid}} {{.State.Status}}'), `${pid} running`);
    await podman.count('c');
    await podman.must('container', 'restore', '--name', 'clone', 'warm');
    await podman.count('clone');
    // What podman looks for in an image: who can restore it, and by what it was made.
    const notes = JSON.parse(
      await podman.must('image', 'inspect', '--format', '{{json .Annotations}}', 'warm'),
    ) as object;
    const noted = new Map(
      Object.entries(notes).map(([key, value]) => [
        key.replace('io.podman.annotations.checkpoint.', ''),
        String(value),
      ]),
    );
    assert.equal(noted.get('name'), 'c');
    assert.match(noted.get('runtime.name')!, /\/bin\/stasis$/);
    assert.match(noted.get('runtime.version')!, /stasis version \S+/);
    assert.match(noted.get('criu.version')!, /^402\d\d$/);
  });

  it('carries what is in /dev/shm, here and by export', async () => {
    await open();
    await podman.start('c');
    await podman.must('exec', 'c', 'sh', '-c', 'echo kept >/dev/shm/file');
    const kept = async (): Promise<string> => await podman.must('exec', 'c', 'cat', '/dev/shm/file');
    await podman.must('container', 'checkpoint', 'c');
    await podman.must('container', 'restore', 'c');
    assert.equal(await kept(), 'kept');
    const archive = join(bed.directory, 'c.tar');
    await podman.must('container', 'checkpoint', '--export', archive, 'c');
    await podman.must('rm', 'c');
    await podman.must('container', 'restore', '--import', archive);
    assert.equal(await kept(), 'kept');
  });

  it('passes --no-pivot and --no-new-keyring on as its settings say', async () => {
    await open({ containers: ['enable_keyring = false'], engine: ['no_pivot_root = true'] });
    await podman.start('c');
    for (let round = 1; round <= 2; round += 1) {
      await podman.must('container', 'checkpoint', 'c');
      await podman.must('container', 'restore', 'c');
      await podman.count('c');
    }
  });

  it('passes flags of the runtime on that its user gives', async () => {
    await open();
    await podman.start('c');
    const flags = ['--runtime-flag', 'debug'];
    await podman.must(...flags, 'container', 'checkpoint', 'c');
    await podman.must(...flags, 'container', 'restore', 'c');
    const numbers = await podman.count('c');
    // Nothing that a runtime has to say more about is the container's.
    assertWithoutGap(numbers);
  });

  it('takes the latest container, and one that goes with its end', async () => {
    await open();
    const archive = join(bed.directory, 'c.tar');
    await podman.start('c', '--rm');
    const refused = await podman.run('container', 'checkpoint', '--latest');
    assert.match(refused.stderr, /'--rm' unless '--export' is used/);
    await podman.must('container', 'checkpoint', '--latest', '--export', archive);
    await waitFor('podman to remove c', async () =>
      (await podman.must('ps', '--all', '--quiet')) === '' ? true : undefined,
    );
    await podman.must('container', 'restore', '--import', archive);
    await podman.count('c');
    await podman.must('stop', '-t', '0', 'c');
    await waitFor('podman to remove c', async () =>
      (await podman.must('ps', '--all', '--quiet')) === '' ? true : undefined,
    );
    await podman.start('d');
    await podman.must('container', 'checkpoint', '--latest');
    await podman.must('container', 'restore', '--latest');
    await podman.count('d');
  });

  it('has every use of a container after its restore: files, signals, limits, a cold start', async () => {
    await open();
    const script = `trap 'echo $((n)) >/root/signalled' USR1; ${counter}`;
    await podman.must('run', '-d', '--name', 'c', '--network', 'none', 'box', 'sh', '-c', script);
    await podman.count('c');
    await podman.must('container', 'checkpoint', 'c');
    await podman.must('container', 'restore', 'c');
    const [into, from] = ['into', 'from'].map((name) => join(bed.directory, name));
    writeFileSync(into!, 'copied\n');
    await podman.must('cp', into!, 'c:/root/file');
    await podman.must('cp', 'c:/root/file', from!);
    assert.equal(readFileSync(from!, 'utf8'), 'copied\n');
    // podman 4 has been seen to compare with nothing, once in a while.
    await waitFor('podman to see the file', async () =>
      /^A \/root\/file$/m.test(await podman.must('diff', 'c')) ? true : undefined,
    );
    await podman.must('kill', '--signal', 'USR1', 'c');
    await waitFor('the signal to be seen', async () =>
      (await podman.run('exec', 'c', 'cat', '/root/signalled')).exitCode === 0 ? true : undefined,
    );
    if (hasController('memory')) {
      await podman.must('update', '--memory', '64m', 'c');
      const shown = await podman.must('exec', 'c', 'sh', '-c', 'cat /sys/fs/cgroup/memory/memory.limit_in_bytes');
      assert.equal(shown, String(64 << 20));
    }
    await podman.must('rename', 'c', 'renamed');
    await podman.must('container', 'checkpoint', 'renamed');
    await podman.must('container', 'restore', 'renamed');
    await podman.count('renamed');
    await podman.must('stop', 'renamed');
    assert.equal(await podman.must('wait', 'renamed'), '7');
    await podman.must('start', 'renamed');
    assert.match(await podman.must('exec', 'renamed', 'ps'), /trap/);
    await podman.must('restart', '-t', '0', 'renamed');
    await podman.count('renamed');
    assert.ok(!existsSync(await podman.imagesDirectory('renamed')), 'images of a restored container are left');
  });
});
