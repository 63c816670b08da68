// Deleted files of containers on overlays and other file systems.
import assert from 'node:assert/strict';
import { chownSync, existsSync, readdirSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Container } from '../support/container.js';
import { mountOverlay } from '../support/overlay.js';
import type { Spec } from '../support/spec.js';
import { useTestBed } from '../support/test-bed.js';

const kUser = 1000;

describe('a container with deleted files', () => {
  const bed = useTestBed();

  async function prepare(adjust?: (spec: Spec) => void): Promise<Container> {
    const container = await bed.prepare({
      args: ['/targets/deleted_file', '/data'],
      targets: ['deleted_file'],
      adjust: (spec) => {
        delete spec.process.rlimits;
        adjust?.(spec);
      },
    });
    return container;
  }

  async function begin(container: Container): Promise<void> {
    await container.mustRunDetached(['run', '--detach', '--bundle', container.bundle, container.id]);
    await container.waitForOutput(/READY|FAIL.*/);
  }

  for (const [what, flags] of [
    ['', []],
    [', left running', ['--leave-running']],
    [', lazily', ['--lazy-pages']],
  ] as const)
    it(`has them again on an overlay, as an ordinary user${what}`, async () => {
      const container = await prepare((spec) => {
        spec.process.user = { uid: kUser, gid: kUser };
      });
      await mountOverlay(bed, container);
      chownSync(join(container.rootfs, 'data'), kUser, kUser);
      await begin(container);
      const isLeftRunning = what === ', left running';
      const images = await container.checkpoint('images', isLeftRunning ? [...flags] : []);
      assert.equal(numberOfImages(images), 5);
      if (isLeftRunning) await container.must(['delete', '--force', container.id]);
      await container.restore('images', isLeftRunning ? [] : [...flags]);
      assert.deepEqual(readdirSync(join(container.rootfs, 'data')), ['again']);
      await container.cycle();
      await container.expectOk();
    });

  it('has one again in the root of its mount when its directory has gone, and leaves no name', async () => {
    const script = `mkdir /gone; echo content >/gone/file; exec 4<>/gone/file; rm -r /gone
      echo READY; while [ ! -e /check ]; do usleep 10000; done
      read line <&4; [ "$line" = content ] && echo OK`;
    const container = await bed.start({ args: ['/bin/sh', '-c', script] });
    await container.waitForOutput(/READY/);
    const names = readdirSync(container.rootfs);
    await container.cycle(2);
    assert.deepEqual(readdirSync(container.rootfs), names);
    await container.expectOk();
  });

  it('of a program that was replaced by an upgrade, in a lower layer of an overlay', async () => {
    const container = await prepare();
    await mountOverlay(bed, container);
    await begin(container);
    const program = join(container.rootfs, 'targets/deleted_file');
    assert.ok(existsSync(program));
    writeFileSync(`${program}.new`, 'another version');
    renameSync(`${program}.new`, program);
    // The program itself is one more.
    assert.equal(numberOfImages(await container.checkpoint()), 6);
    await container.restore();
    await container.cycle();
    await container.expectOk();
  });
});

function numberOfImages(directory: string): number {
  return readdirSync(directory).filter((name) => name.startsWith('ghost-file-')).length;
}
