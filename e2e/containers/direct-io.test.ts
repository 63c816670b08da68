// `checkpoint --direct-io`: page files that are written past the page cache.
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { Container } from '../support/container.js';
import { OwnTerminal } from '../support/own-terminal.js';
import { stasisProgram } from '../support/paths.js';
import { mustRun } from '../support/run.js';
import { mountDisk, mountSmall } from '../support/small-disk.js';
import { useTestBed } from '../support/test-bed.js';

interface Result {
  readonly directIo: boolean;
  readonly remarks: readonly string[];
}

describe('page files past the page cache', () => {
  const bed = useTestBed();

  const start = async (target: string, ...more: string[]): Promise<Container> => {
    const container = await bed.start({
      args: [`/targets/${target}`, ...more],
      targets: [target],
      adjust: (spec) => {
        delete spec.process.rlimits;
      },
    });
    await container.waitForOutput(/READY|FAIL.*/);
    return container;
  };

  async function checkpoint(container: Container, images: string, flags: readonly string[]): Promise<Result> {
    mkdirSync(`${images}.work`, { recursive: true });
    const { stdout } = await container.must(container.checkpointArgs(images, ['--direct-io', '--json', ...flags]));
    return JSON.parse(stdout) as Result;
  }

  /** Bytes of a file that are in the page cache. */
  async function cachedBytes(path: string): Promise<number> {
    const { stdout } = await mustRun('fincore', ['--bytes', '--noheadings', '--output', 'RES', path]);
    return Number(stdout.trim());
  }

  // Plain ones are of whole pages; frames and their index end anywhere.
  for (const [what, flags, name] of [
    ['plain', [], 'pages-1.img'],
    ['compressed', ['--compress=zstd'], 'pages-1.img.zst'],
    ['plain, of a container that goes on,', ['--leave-running'], 'pages-1.img'],
  ] as const)
    it(`${what} hold what the container had, and leave the cache alone`, async () => {
      const container = await start('shared_mostly_still');
      const disk = join(bed.directory, 'disk');
      await mountDisk(bed, disk, 256);
      const images = join(disk, 'images');
      const { directIo, remarks } = await checkpoint(container, images, flags);
      assert.deepEqual([directIo, remarks], [true, []]);
      const size = statSync(join(images, name)).size;
      assert.equal(size % 4096 === 0, what !== 'compressed');
      for (const file of readdirSync(images).filter((each) => each.startsWith('pages-'))) {
        const path = join(images, file);
        assert.ok((await cachedBytes(path)) <= statSync(path).size / 8 + 65_536, `${file} is in the page cache`);
      }
      await mustRun(stasisProgram, ['verify', images]);
      if (what.includes('goes on')) await container.must(['delete', '--force', container.id]);
      await container.mustRunDetached(container.restoreArgs(images));
      await container.expectOk();
    });

  it('go through the cache, with a remark, where the file system is memory', async () => {
    const container = await start('memory_layout');
    const place = join(bed.directory, 'memory');
    mkdirSync(place);
    await mustRun('mount', ['-t', 'tmpfs', 'none', place]);
    bed.onClose(async () => {
      await mustRun('umount', ['-l', place]);
    });
    const images = join(place, 'images');
    // A person who has not asked for JSON is told as well.
    const args = ['checkpoint', '--image-path', images, '--leave-running', '--direct-io', container.id];
    const terminal = new OwnTerminal(stasisProgram, ['--root', container.stateRoot, ...args]);
    assert.equal(await terminal.ended(), 0, terminal.output());
    assert.match(terminal.output(), /^note: page files went through the page cache in spite of --direct-io/m);
    const { directIo, remarks } = await checkpoint(container, images, []);
    assert.equal(directIo, false);
    assert.match(remarks.join('\n'), /^page files went through the page cache in spite of --direct-io/m);
    await container.mustRunDetached(container.restoreArgs(images));
    await container.expectOk();
  });

  for (const [what, mount] of [
    ['a disk', (place: string) => mountDisk(bed, place, 24)],
    ['memory', (place: string) => mountSmall(bed, place)],
  ] as const)
    it(`leave the container as it was when ${what} is full`, async () => {
      const container = await start('shared_mostly_still');
      const place = join(bed.directory, 'full');
      await mount(place);
      const work = join(bed.directory, 'work');
      mkdirSync(work);
      const images = join(place, 'images');
      const args = ['checkpoint', '--image-path', images, '--work-path', work, '--direct-io', container.id];
      const { exitCode, stderr } = await container.stasis(args);
      assert.notEqual(exitCode, 0);
      assert.match(stderr, /space/i);
      container.assertUntouched();
      assert.ok(!existsSync(join(images, 'inventory.img')));
      assert.ok(!existsSync(images) || readdirSync(images).length === 0, 'something is left of the images');
      await container.expectOk();
    });
});
