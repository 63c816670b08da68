// What a person reads when it cannot be done, through containerd's client
// and docker: one sentence that says why, whoever says it; and what is left.
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, rmdirSync, writeFileSync } from 'node:fs';
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { boxImage, Containerd, countingInside } from '../support/containerd.js';
import { Docker } from '../support/docker.js';
import { requires } from '../support/lanes.js';
import { counter } from '../support/podman.js';
import { mustRun, run } from '../support/run.js';
import { mountSmall } from '../support/small-disk.js';
import { openFor } from '../support/open-manager.js';
import { alterCore, otherMachines } from '../support/other-machines.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';

const kAltered = /cannot read the images: "core-\d+\.img" [^\n]*; use another copy of the checkpoint/;

describe('containerd says in one sentence', () => {
  const bed = useTestBed();
  let containerd: Containerd;

  beforeEach(async function () {
    containerd = await openFor(this, bed, ['daemons'], () => Containerd.open());
  });

  async function refused(...words: readonly string[]): Promise<string> {
    const { exitCode, stderr } = await containerd.ctr(...words);
    assert.notEqual(exitCode, 0, 'it has succeeded');
    assert.match(stderr, /^ctr: [^\n]+\n?$/);
    return stderr.trimEnd();
  }

  async function saved(...options: readonly string[]): Promise<void> {
    await containerd.start('one', countingInside);
    await containerd.count('one');
    await containerd.must('container', 'checkpoint', '--rw', ...options, '--task', 'one', 'saved/one:1');
    await containerd.remove('one');
  }

  const restore = ['container', 'restore', '--live', '--rw'] as const;

  it('that the disk is full, of the images and of the image, and the task runs on', async () => {
    await containerd.start('one', countingInside);
    await containerd.count('one');
    const before = await containerd.task('one');
    const images = join(bed.directory, 'images');
    await mountSmall(bed, images);
    const full = /cannot write image \S+ in \S+: ENOSPC \(no space left on device\); free space on /;
    assert.match(await refused('task', 'checkpoint', '--image-path', images, 'one'), full);
    assert.deepEqual(await containerd.task('one'), before);
    await mountSmall(bed, join(containerd.directory, 'tmp'));
    assert.match(await refused('task', 'checkpoint', 'one'), full);
    assert.match(await refused('container', 'checkpoint', '--rw', '--task', 'one', 'saved/one:1'), full);
    assert.deepEqual(await containerd.task('one'), before);
    await containerd.count('one');
  });

  it('that the name is in use, and whoever has it runs on', async () => {
    await saved('--image');
    await containerd.start('two', countingInside);
    assert.match(await refused(...restore, 'two', 'saved/one:1'), /"two": already exists/);
    await containerd.count('two');
  });

  it('that the image of the container is missing, and nothing stays', async () => {
    await saved();
    await containerd.must('image', 'rm', '--sync', boxImage);
    assert.match(await refused(...restore, 'one', 'saved/one:1'), /docker.io\/library\/box:latest.*not found/);
    assert.equal(await containerd.must('container', 'ls', '--quiet'), '');
  });

  for (const [what, change, sentence] of otherMachines) {
    it(`that the checkpoint is ${what}`, async function () {
      requires(this, 'peers');
      await saved('--image');
      await alterImage('saved/one:1', (directory) => {
        rmSync(join(directory, 'stasis-manifest.json'));
        return alterCore(directory, change);
      });
      assert.match(await refused(...restore, 'one', 'saved/one:1'), sentence);
      assert.deepEqual(await containerd.task('one'), { pid: 0, status: 'CREATED' });
      assert.ok(!existsSync(join(containerd.directory, 'runc/default/one')));
    });
  }

  it('that the images were altered', async function () {
    requires(this, 'peers');
    await saved('--image');
    await alterImage('saved/one:1', (directory) =>
      alterCore(directory, (core) => core.replace(/"gid": 0/, '"gid": 1')),
    );
    assert.match(await refused(...restore, 'one', 'saved/one:1'), kAltered);
    assert.ok(!existsSync(join(containerd.directory, 'runc/default/one')));
  });

  /** The images of a checkpoint in containerd's store, changed on their way through a file, with all digests made right. */
  async function alterImage(name: string, change: (directory: string) => Promise<void>): Promise<void> {
    const layout = join(bed.directory, 'layout');
    mkdirSync(layout);
    await containerd.must('image', 'export', '--skip-manifest-json', '--all-platforms', `${layout}.tar`, name);
    await mustRun('tar', ['-xf', `${layout}.tar`, '-C', layout]);
    const blobs = join(layout, 'blobs/sha256');
    const digestOf = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');
    const replace = (old: string, bytes: Buffer): void => {
      writeFileSync(join(blobs, digestOf(bytes)), bytes);
      for (const file of [...readdirSync(blobs).map((blob) => `blobs/sha256/${blob}`), 'index.json']) {
        const path = join(layout, file);
        const content = readFileSync(path);
        if (content[0] !== 0x7b || !content.includes(old)) continue;
        const document = JSON.parse(content.toString()) as { manifests: { digest: string; size: number }[] };
        for (const one of document.manifests) {
          if (one.digest !== `sha256:${old}`) continue;
          one.digest = `sha256:${digestOf(bytes)}`;
          one.size = bytes.length;
        }
        const next = Buffer.from(JSON.stringify(document));
        if (file === 'index.json') writeFileSync(path, next);
        else replace(file.split('/').at(-1)!, next);
      }
    };
    for (const blob of readdirSync(blobs)) {
      const listed = await run('tar', ['-tf', join(blobs, blob)]);
      if (listed.exitCode !== 0 || !listed.stdout.includes('inventory.img')) continue;
      const images = join(bed.directory, 'altered');
      mkdirSync(images);
      await mustRun('tar', ['-xf', join(blobs, blob), '-C', images]);
      await change(images);
      await mustRun('tar', ['-cf', `${images}.tar`, '-C', images, '.']);
      replace(blob, readFileSync(`${images}.tar`));
    }
    assert.ok(existsSync(join(bed.directory, 'altered.tar')), 'there are no images in the checkpoint');
    await containerd.must('image', 'rm', '--sync', name);
    await mustRun('tar', ['-cf', `${layout}.tar`, '-C', layout, '.']);
    await containerd.must('image', 'import', '--all-platforms', `${layout}.tar`);
  }
});

describe('docker says in one sentence', () => {
  const bed = useTestBed();
  let docker: Docker;

  beforeEach(async function () {
    docker = await openFor(this, bed, ['daemons'], () => Docker.open());
  });

  const status = async (): Promise<string> => await docker.inspect('web', '{{.State.Status}}');
  const ended = async (): Promise<true | undefined> => ((await status()) === 'exited' ? true : undefined);

  async function start(...options: readonly string[]): Promise<string> {
    await docker.must('run', '--detach', '--name', 'web', '--network', 'host', ...options, 'box', 'sh', '-c', counter);
    await docker.count('web');
    return join(docker.directory, 'data/containers', await docker.inspect('web', '{{.Id}}'), 'checkpoints');
  }

  async function refused(...words: readonly string[]): Promise<string> {
    const { exitCode, stderr } = await docker.run(...words);
    assert.notEqual(exitCode, 0, 'it has succeeded');
    const [sentence, ...rest] = stderr.trimEnd().split('\n');
    assert.deepEqual(
      rest.filter((line) => line !== '' && !/--help|failed to start containers/.test(line)),
      [],
    );
    return sentence!;
  }

  it('that the disk of its checkpoints is full, and the container runs on if it is to', async () => {
    const checkpoints = await start();
    await mountSmall(bed, checkpoints);
    const sentence = await refused('checkpoint', 'create', '--leave-running', 'web', 'cp');
    assert.match(sentence, /^Error response from daemon: .*no space left on device/);
    assert.equal(await status(), 'running');
    await docker.count('web');
    // docker's own: it copies the images there when the container has ended.
    assert.match(
      await refused('checkpoint', 'create', 'web', 'cp2'),
      /Cannot checkpoint container web: failed to read/,
    );
    await waitFor('the container to end', ended);
  });

  it('that the name is in use', async () => {
    await start();
    await docker.must('checkpoint', 'create', '--leave-running', 'web', 'cp');
    assert.match(await refused('checkpoint', 'create', 'web', 'cp'), /checkpoint with name cp already exists/);
    assert.match(await refused('run', '--name', 'web', 'box', 'true'), /name "\/web" is already in use/);
    await docker.count('web');
  });

  it('that the source of a bind mount has gone', async () => {
    const shared = join(bed.directory, 'shared');
    mkdirSync(shared);
    // With --volume docker makes the directory again.
    await start('--mount', `type=bind,source=${shared},target=/shared`);
    await docker.must('checkpoint', 'create', 'web', 'cp');
    await waitFor('the container to end', ended);
    await docker.forgetCheckpoints();
    rmdirSync(shared);
    const sentence = await refused('start', '--checkpoint', 'cp', 'web');
    assert.match(sentence, /^Error response from daemon: .*bind source path does not exist: .*shared/);
    mkdirSync(shared);
    await docker.forgetCheckpoints();
    await docker.must('start', '--checkpoint', 'cp', 'web');
    await docker.count('web');
  });

  const altered = [
    ...otherMachines.map(([what, change, sentence]) => [what, change, sentence, true] as const),
    ['altered', (core: string) => core.replace(/"gid": 0/, '"gid": 1'), kAltered, false] as const,
  ];
  for (const [what, change, sentence, withoutDigests] of altered) {
    it(`that the checkpoint is ${what}`, async function () {
      requires(this, 'peers');
      const checkpoints = await start();
      await docker.must('checkpoint', 'create', 'web', 'cp');
      await waitFor('the container to end', ended);
      await docker.forgetCheckpoints();
      const images = join(checkpoints, 'cp');
      if (withoutDigests) rmSync(join(images, 'stasis-manifest.json'));
      await alterCore(images, change);
      assert.match(await refused('start', '--checkpoint', 'cp', 'web'), sentence);
      assert.equal(await status(), 'exited');
    });
  }
});
