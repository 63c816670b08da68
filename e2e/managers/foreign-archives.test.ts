// podman takes over what was never its own: checkpoints of containers that runc
// ran, and of those that CRI-O, containerd and docker ran, as archives to import
// and as images to restore.
import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pack } from '../support/archives.js';
import type { Container } from '../support/container.js';
import { openFor } from '../support/open-manager.js';
import { stasisProgram } from '../support/paths.js';
import { counter, installedPrefix, Podman } from '../support/podman.js';
import { lastLine, mustRun, run } from '../support/run.js';
import type { Spec } from '../support/spec.js';
import { useTestBed } from '../support/test-bed.js';
import { assertWithoutGap } from '../support/counting.js';

describe('archives of others for podman', () => {
  const image = 'localhost/box:latest';
  const runtime = join(installedPrefix, 'bin/stasis');
  const bed = useTestBed();
  let podman: Podman;
  let forPodman: string[];

  beforeEach(async function () {
    podman = await openFor(this, bed, ['podman'], () => Podman.open(join(bed.directory, 'podman')));
    const id = await podman.must('image', 'inspect', '--format', '{{.Id}}', image);
    forPodman = ['--image', image, '--image-id', id, '--runtime', runtime];
  });

  const file = (name: string): string => join(bed.directory, name);

  /** A counter that runc runs, with a changed file; checkpointed into an archive. */
  const archived = async (
    adjust: (spec: Spec) => void = () => undefined,
    change: (rootfs: string) => Promise<void> = async () => undefined,
  ): Promise<{ readonly container: Container; readonly archive: string }> => {
    const args = ['sh', '-c', `echo changed >/data/new; rm /data/old; ${counter}`];
    const container = await bed.prepare({ args, adjust, streams: 'pipe', files: { 'data/old': 'old\n' } });
    const before = file('before');
    await mustRun('cp', ['-a', container.rootfs, before]);
    await container.mustRunDetached(['run', '--detach', '--bundle', container.bundle, container.id]);
    await container.waitForOutput(/^3$/m);
    await change(container.rootfs);
    const archive = file('runc.tar.zst');
    await container.must(['checkpoint', '--archive', archive, '--lower', before, 'c1']);
    return { container, archive };
  };

  const assertGoesOn = async (container: Container, name: string): Promise<void> => {
    const reached = Number(lastLine(container.output()));
    const numbers = await podman.count(name);
    const first = numbers[0]!;
    assert.ok(first === reached + 1 || first === reached, `it goes on with ${first} after ${reached}`);
    assert.deepEqual(
      numbers,
      numbers.map((_, index) => first + index),
    );
  };

  it('are imported, and are its own containers from then on', async () => {
    const { container, archive } = await archived();
    const packed = file('podman.tar');
    const notes = await pack(archive, '--to', 'podman', ...forPodman, '--name', 'web', '--output', packed);
    assert.match(notes, /^note: podman's own settings are its defaults/m);
    await podman.must('container', 'restore', '--import', packed);
    await assertGoesOn(container, 'web');
    assert.equal(await podman.must('exec', 'web', 'cat', '/data/new'), 'changed');
    assert.equal(await podman.inspect('web', '{{.ImageName}} {{.HostConfig.NetworkMode}}'), `${image} none`);
    await podman.must('container', 'checkpoint', 'web');
    await podman.must('container', 'restore', 'web');
    await assertGoesOn(container, 'web');
    await podman.must('stop', 'web');
    assert.equal(await podman.inspect('web', '{{.State.ExitCode}}'), '7');
  });

  it('bring access control lists along', async () => {
    // rw-, user 1000 r--, group r--, mask r--, others ---.
    const list = '0200000001000600ffffffff02000400e803000004000400ffffffff10000400ffffffff20000000ffffffff';
    const python = async (program: string, directory: string): Promise<string> =>
      (await mustRun('python3', ['-c', `import os, sys; os.chdir(sys.argv[1])\n${program}`, directory])).stdout;
    const { archive } = await archived(undefined, async (rootfs) => {
      const set = (name: string, kind: string): string =>
        `os.setxattr("${name}", "system.posix_acl_${kind}", bytes.fromhex("${list}"))`;
      await mustRun('install', ['-m', '0700', '-d', join(rootfs, 'data/shared')]);
      await mustRun('install', ['-m', '0600', '/dev/null', join(rootfs, 'data/shared/private')]);
      await python(`${set('data/shared', 'default')}\n${set('data/new', 'access')}`, rootfs);
    });
    const packed = file('podman.tar');
    await pack(archive, '--to', 'podman', ...forPodman, '--name', 'web', '--output', packed);
    await podman.must('container', 'restore', '--import', packed);
    await podman.count('web');
    const names = '["data/new", "data/shared", "data/shared/private"]';
    const show = `for f in ${names}: print(*sorted((n, os.getxattr(f, n).hex()) for n in os.listxattr(f) if "_acl_" in n))`;
    // The last one has not inherited any where it was made anew.
    assert.deepEqual((await python(show, await podman.inspect('web', '{{.GraphDriver.Data.MergedDir}}'))).split('\n'), [
      `('system.posix_acl_access', '${list}')`,
      `('system.posix_acl_default', '${list}')`,
      '',
    ]);
  });

  for (const dialect of ['cri-o', 'containerd'] as const) {
    it(`are imported in the layout of ${dialect}`, async () => {
      const { container, archive } = await archived();
      await pack(archive, '--to', dialect, '--name', 'web', '--output', file('theirs.tar'));
      const packed = file('podman.tar.gz');
      await pack(file('theirs.tar'), '--from', dialect, '--to', 'podman', ...forPodman, '--output', packed);
      await podman.must('container', 'restore', '--import', packed);
      await assertGoesOn(container, 'web');
      assert.equal(await podman.must('exec', 'web', 'cat', '/data/new'), 'changed');
      assert.equal(await podman.must('exec', 'web', 'sh', '-c', 'test -e /data/old || echo gone'), 'gone');
    });
  }

  it('are imported from a directory of images, as CRIU and docker have them', async () => {
    const { container, archive } = await archived();
    await mustRun(stasisProgram, ['unpack', archive, '--images', '--output', file('images')]);
    const spec = ['--spec', join(container.bundle, 'config.json'), '--name', 'web'];
    const packing = [
      'pack',
      file('images'),
      '--from',
      'docker',
      '--to',
      'podman',
      ...spec,
      '--output',
      file('podman.tar'),
    ];
    const without = await run(stasisProgram, packing);
    assert.match(lastLine(without.stderr), /the source says none; name the image with --image/);
    // podman 4 takes the image by its name.
    const byName = ['--image', image, '--runtime', runtime];
    const packed = await mustRun(stasisProgram, [...packing, ...(podman.set.major === 4 ? byName : forPodman)]);
    if (podman.set.major === 4) assert.match(packed.stderr, /podman 5 finds the image by its id, which is not known/);
    await podman.must('container', 'restore', '--import', file('podman.tar'));
    await assertGoesOn(container, 'web');
  });

  it('are restored as images', async () => {
    const { container, archive } = await archived();
    const packed = file('image.tar');
    const words = ['--to', 'oci-archive', '--for', 'podman', ...forPodman, '--name', 'web', '--tag', 'ckpt'];
    await pack(archive, ...words, '--output', packed);
    const id = await podman.pullArchive(packed);
    await podman.must('container', 'restore', id);
    await assertGoesOn(container, 'web');
    assert.equal(await podman.must('exec', 'web', 'cat', '/data/new'), 'changed');
  });

  it('of pods join a network of podman, and have the other namespaces that they had joined for themselves', async () => {
    const joined = ['net', 'ipc', 'uts'].map((kind) => `--${kind}=${file(kind)}`);
    for (const kind of ['net', 'ipc', 'uts']) writeFileSync(file(kind), '');
    await mustRun('unshare', [...joined, 'true']);
    bed.onClose(async () => void (await mustRun('umount', [file('net'), file('ipc'), file('uts')])));
    const { container, archive } = await archived((spec) => {
      for (const namespace of spec.linux.namespaces) {
        const kind = namespace.type === 'network' ? 'net' : namespace.type;
        if (['net', 'ipc', 'uts'].includes(kind)) namespace.path = file(kind);
      }
      // runc refuses a name for a namespace that is another's.
      delete (spec as { hostname?: string }).hostname;
    });
    const packed = file('podman.tar');
    const notes = await pack(archive, '--to', 'podman', ...forPodman, '--name', 'web', '--output', packed);
    assert.match(notes, /the network namespace that it had joined is replaced by podman's network "podman"/);
    assert.match(notes, /namespaces of its own in place of those that it shared: ipc, uts$/m);
    await podman.must('container', 'restore', '--import', packed);
    await assertGoesOn(container, 'web');
    assert.match(await podman.must('exec', 'web', 'ip', 'addr', 'show', 'eth0'), /inet 10\.88\./);
  });

  it('bring bind mounts of their machine along, and files in /etc of their manager do not', async () => {
    const volume = file('volume');
    mkdirSync(volume);
    writeFileSync(join(volume, 'kept'), 'kept\n');
    writeFileSync(file('hosts'), '127.0.0.1 old\n');
    const { container, archive } = await archived((spec) => {
      const bind = (source: string, destination: string): void =>
        void spec.mounts.push({ source, destination, type: 'bind', options: ['rbind', 'rw'] });
      bind(volume, '/volume');
      bind(file('hosts'), '/etc/hosts');
      mkdirSync(file('shm'));
      bind(file('shm'), '/dev/shm');
      spec.process.user = { uid: 1000, gid: 1000 };
      spec.process.rlimits!.push({ type: 'RLIMIT_CORE', hard: 1, soft: 1 });
    });
    const packed = file('podman.tar');
    const notes = await pack(archive, '--to', 'podman', ...forPodman, '--name', 'web', '--output', packed);
    assert.match(notes, /these have to be on the machine that restores: \S+volume \(for \/volume\)$/m);
    assert.match(notes, /podman writes its own \/etc\/hosts$/m);
    await podman.must('container', 'restore', '--import', packed);
    await assertGoesOn(container, 'web');
    assert.equal(await podman.must('exec', 'web', 'sh', '-c', 'id -u; cat /volume/kept'), '1000\nkept');
    assert.doesNotMatch(await podman.must('exec', 'web', 'cat', '/etc/hosts'), /old/);
  });

  it('of podman itself go to another runtime and another name', async () => {
    await podman.start('c');
    await podman.must('container', 'checkpoint', '--export', file('c.tar'), '--compress', 'none', 'c');
    await podman.must('rm', 'c');
    const other = join(installedPrefix, 'lib/stasis/runtimes/runc');
    await pack(file('c.tar'), '--to', 'podman', '--runtime', other, '--name', 'web', '--output', file('other.tar'));
    const refused = await podman.run('container', 'restore', '--import', file('other.tar'));
    assert.match(refused.stderr, /was created with runtime '\S+runtimes\/runc' and cannot be restored with runtime/);
    await pack(file('other.tar'), '--to', 'podman', ...forPodman, '--output', file('back.tar'));
    await podman.must('container', 'restore', '--import', file('back.tar'));
    assertWithoutGap(await podman.count('web'));
  });
});
