// Deleted files of containers on overlays and other file systems.
import assert from 'node:assert/strict';
import { chownSync, existsSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Container } from '../support/container.js';
import { mountOverlay } from '../support/overlay.js';
import { stasisProgram } from '../support/paths.js';
import { mustRun } from '../support/run.js';
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

  for (const flags of [['--leave-running'], []])
    it(`has one again as it was at one moment, while it is written to (${flags[0] ?? 'ended'})`, async () => {
      const container = await bed.start({ args: ['/targets/deleted_written'], targets: ['deleted_written'] });
      await container.waitForOutput(/READY|FAIL.*/);
      await container.checkpoint('images', flags);
      if (flags.length > 0) await container.must(['delete', '--force', container.id]);
      await container.restore();
      await container.expectOk();
    });

  it('is told so by inspect and plan, and is refused with an image that was altered', async () => {
    const container = await prepare();
    await begin(container);
    const images = await container.checkpoint();
    const { stdout } = await mustRun(stasisProgram, ['inspect', images]);
    assert.match(stdout, /\/data\/large \(deleted; 3\.0 MiB in ghost-file-\d\.img\)/);
    assert.match((await mustRun(stasisProgram, ['plan', '--image-path', images])).stdout, /sendfile.*3145728/);
    const name = readdirSync(images).find(
      (one) => one.startsWith('ghost-file-') && sizeOf(join(images, one)) > 1 << 20,
    )!;
    const bytes = readFileSync(join(images, name));
    bytes[bytes.length - 1]! ^= 1;
    writeFileSync(join(images, name), bytes);
    const { exitCode, stderr } = await container.stasis(container.restoreArgs(images));
    assert.notEqual(exitCode, 0);
    assert.match(stderr, new RegExp(name));
    bytes[bytes.length - 1]! ^= 1;
    writeFileSync(join(images, name), bytes);
    await container.restore();
    await container.expectOk();
  });

  it('has them again after a pre-dump, which does not carry them', async () => {
    const container = await prepare();
    await begin(container);
    const { remarks } = JSON.parse(
      (await container.must(container.checkpointArgs(container.imagesDirectory('one'), ['--pre-dump', '--json'])))
        .stdout,
    ) as { readonly remarks: readonly string[] };
    assert.deepEqual(
      remarks.filter((remark) => remark.includes('fail')),
      [],
    );
    assert.equal(numberOfImages(container.imagesDirectory('one')), 0);
    await container.checkpoint('two', ['--parent-path', '../one']);
    await container.restore('two');
    await container.expectOk();
  });

  it('has them again from an archive', async () => {
    const container = await prepare();
    await begin(container);
    const file = join(bed.directory, 'a.tar.zst');
    await container.must(['checkpoint', '--archive', file, '--ignore-rootfs', container.id]);
    await mustRun(stasisProgram, ['verify', file]);
    const restore = ['restore', '--detach', '--bundle', container.bundle, '--archive', file, container.id];
    await container.mustRunDetached(restore);
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

const sizeOf = (path: string): number => statSync(path).size;

function numberOfImages(directory: string): number {
  return readdirSync(directory).filter((name) => name.startsWith('ghost-file-')).length;
}
