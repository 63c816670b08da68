import assert from 'node:assert/strict';
import { chownSync, closeSync, mkdirSync, openSync, renameSync, unlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Container } from '../support/container.js';
import type { Spec } from '../support/spec.js';
import { mountOverlay } from '../support/overlay.js';
import { useTestBed, type TestBed } from '../support/test-bed.js';

const kUser = 1000;

describe('a container that watches files', () => {
  const bed = useTestBed();

  // An overlay does not let files be opened by their handles; where its layers cannot be seen, all directories are listed.
  for (const [what, flags, upper] of [
    ['', [], 'seen'],
    [', left running', ['--leave-running'], 'seen'],
    [' whose layers cannot be seen', [], 'hidden'],
  ] as const)
    it(`goes on watching on an overlay${what}, as an ordinary user`, async () => {
      const container = await bed.prepare({
        args: ['/targets/inotify', '/home/data'],
        targets: ['inotify'],
        adjust: (spec) => {
          spec.process.user = { uid: kUser, gid: kUser };
          delete spec.process.rlimits;
        },
      });
      await mountOverlay(bed, container, upper);
      mkdirSync(join(container.rootfs, 'home/data'), { recursive: true });
      chownSync(join(container.rootfs, 'home/data'), kUser, kUser);
      await begin(container);
      if (flags.length > 0) {
        await container.checkpoint('images', [...flags]);
      } else {
        await container.cycle(2);
      }
      await container.expectOk();
    });

  it('goes on watching in a tmpfs, in a user namespace', async () => {
    const container = await bed.start({
      args: ['/targets/inotify'],
      targets: ['inotify'],
      adjust: (spec) => {
        const ids = [{ containerID: 0, hostID: 100_000, size: 65_536 }];
        spec.linux.namespaces.push({ type: 'user' });
        spec.linux.uidMappings = ids;
        spec.linux.gidMappings = ids;
        spec.mounts.push({ destination: '/data', type: 'tmpfs', source: 'tmpfs', options: ['nosuid', 'noexec'] });
        delete spec.process.rlimits;
      },
    });
    await container.waitForOutput(/READY|FAIL.*/);
    await container.cycle(2);
    await container.expectOk();
  });

  it('is told nothing of what it had not read, and the result says so', async () => {
    const container = await startWatcher(bed, ['/config'], { '/config': '' });
    writeFileSync(join(container.rootfs, 'config'), 'new');
    const degradations = await checkpointWithNotes(container);
    assert.deepEqual(
      degradations.map(({ code }) => code),
      ['INOTIFY_EVENTS_LOST'],
    );
    assert.match(
      degradations[0]!.message,
      /^fd 3 of pid \d+ .* with (16|32|48) bytes of unread events, which are lost$/,
    );
    await container.restore();
    writeFileSync(join(container.rootfs, 'config'), 'newer', { flag: 'a' });
    await container.expectOk();
    assert.deepEqual(container.output().match(/EVENT.*/g), ['EVENT 1 0x2']);
  });

  it('loses a watch on a file without a name, and the result says so', async () => {
    const container = await startWatcher(bed, ['/old', '/config'], { '/old': '', '/config': '' });
    const old = join(container.rootfs, 'old');
    // Nobody in the container has it open.
    const holder = openSync(old, 'r');
    try {
      unlinkSync(old);
      const degradations = await checkpointWithNotes(container);
      assert.deepEqual(degradations.map(({ code }) => code).sort(), ['INOTIFY_EVENTS_LOST', 'INOTIFY_WATCH_LOST']);
    } finally {
      closeSync(holder);
    }
    await container.restore();
    writeFileSync(join(container.rootfs, 'config'), 'new', { flag: 'a' });
    await container.expectOk();
    assert.deepEqual(container.output().match(/EVENT.*/g), ['EVENT 2 0x2']);
  });

  it('is refused with a watch on what it cannot see any more, and runs on', async () => {
    const outside = join(bed.directory, 'volume');
    mkdirSync(join(outside, 'inner'), { recursive: true });
    writeFileSync(join(outside, 'inner/config'), '');
    const bind = (spec: Spec): void => {
      spec.mounts.push({
        destination: '/volume',
        type: 'bind',
        source: join(outside, 'inner'),
        options: ['bind', 'rw'],
      });
    };
    const container = await startWatcher(bed, ['/volume/config'], {}, bind);
    renameSync(join(outside, 'inner/config'), join(outside, 'config'));
    const { exitCode, stderr } = await container.stasis(container.checkpointArgs(container.imagesDirectory()));
    assert.notEqual(exitCode, 0);
    assert.match(
      stderr,
      /watch 1 of fd 3 of pid \d+ .*, an inotify instance, is on inode \d+ on device \d+:\d+, for which no path was found in the container/,
    );
    container.assertUntouched();
    await container.expectOk();
  });
});

async function begin(container: Container): Promise<void> {
  await container.mustRunDetached(['run', '--detach', '--bundle', container.bundle, container.id]);
  await container.waitForOutput(/READY|FAIL.*/);
}

async function startWatcher(
  bed: TestBed,
  paths: readonly string[],
  files: Readonly<Record<string, string>>,
  adjust?: (spec: Spec) => void,
): Promise<Container> {
  const container = await bed.start({
    args: ['/targets/watcher', ...paths],
    targets: ['watcher'],
    files,
    ...(adjust === undefined ? {} : { adjust }),
  });
  await container.waitForOutput(/READY|FAIL.*/);
  return container;
}

interface Note {
  readonly code: string;
  readonly message: string;
}

async function checkpointWithNotes(container: Container): Promise<readonly Note[]> {
  const { stdout } = await container.must(container.checkpointArgs(container.imagesDirectory(), ['--json']));
  return (JSON.parse(stdout) as { readonly degradations: readonly Note[] }).degradations;
}
