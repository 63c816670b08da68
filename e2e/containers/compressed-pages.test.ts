// `checkpoint --compress`: page files that are compressed while they are written,
// and read piece by piece.
import assert from 'node:assert/strict';
import { existsSync, openSync, readFileSync, readSync, closeSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import type { Container } from '../support/container.js';
import { stasisProgram } from '../support/paths.js';
import { mustRun, run } from '../support/run.js';
import { useTestBed } from '../support/test-bed.js';

const kManifest = 'stasis-manifest.json';

describe('compressed page files', () => {
  const bed = useTestBed();

  const start = async (target: string, ...more: string[]): Promise<Container> => {
    const container = await bed.start({ args: [`/targets/${target}`, ...more], targets: [target] });
    await container.waitForOutput(/READY|FAIL.*/);
    return container;
  };

  for (const [flag, name] of [
    ['--compress', 'pages-1.img.lz4'],
    ['--compress=zstd', 'pages-1.img.zst'],
    ['--compress=zstd:7', 'pages-1.img.zst'],
  ] as const) {
    it(`restore what the container had: ${flag}`, async () => {
      const container = await start('memory_layout');
      for (let round = 1; round <= 2; round++) {
        const images = await container.checkpoint(`images-${round}`, [flag]);
        assert.ok(existsSync(join(images, name)), `there is no ${name}`);
        assert.ok(!existsSync(join(images, 'pages-1.img')));
        assert.match(readFileSync(join(images, kManifest), 'utf8'), new RegExp(`"${name}"`));
        await mustRun(stasisProgram, ['verify', images]);
        await mustRun(stasisProgram, ['inspect', images]);
        await container.restore(`images-${round}`);
      }
      await container.expectOk();
    });
  }

  it('hold one moment of a container that writes meanwhile, shared memory too', async () => {
    const container = await start('memory_while_written');
    const shared = await bed.start({ id: 'c2', args: ['/targets/shared_anonymous'], targets: ['shared_anonymous'] });
    await shared.waitForOutput(/READY|FAIL.*/);
    for (const one of [container, shared]) {
      for (let round = 1; round <= 2; round++) {
        await one.checkpoint(`${one.id}-${round}`, ['--leave-running', '--compress=zstd']);
        await one.must(['delete', '--force', one.id]);
        await one.restore(`${one.id}-${round}`);
      }
      await one.expectOk();
    }
  });

  it('are refused when a byte has changed, by verify and by restore, with a manifest and without', async () => {
    const container = await start('memory_layout');
    for (const [codec, name] of [
      ['lz4', 'pages-1.img.lz4'],
      ['zstd', 'pages-1.img.zst'],
    ] as const) {
      const images = await container.checkpoint(codec, ['--leave-running', `--compress=${codec}`]);
      const file = join(images, name);
      flipByte(file, 5000);
      const verified = await run(stasisProgram, ['verify', images]);
      assert.notEqual(verified.exitCode, 0);
      assert.match(verified.stderr, new RegExp(`"${name}" is not the file that was written`));
      rmSync(join(images, kManifest));
      await container.must(['delete', '--force', container.id]);
      const refused = await container.runDetached(container.restoreArgs(images));
      assert.notEqual(refused.exitCode, 0);
      assert.match(refused.stderr, new RegExp(`compressed pages at \\d+ of "${name}" are damaged`));
      flipByte(file, 5000);
      await container.mustRunDetached(container.restoreArgs(images));
    }
    await container.expectOk();
  });

  it('go through archives and back', async () => {
    const container = await start('memory_layout');
    const images = await container.checkpoint('images', ['--compress=lz4']);
    const archive = join(bed.directory, 'packed.tar');
    await mustRun(stasisProgram, [
      'pack',
      '--spec',
      join(container.bundle, 'config.json'),
      '--output',
      archive,
      images,
    ]);
    await mustRun(stasisProgram, ['verify', archive]);
    const unpacked = join(bed.directory, 'unpacked');
    await mustRun(stasisProgram, ['unpack', '--images', '--output', unpacked, archive]);
    await container.mustRunDetached(container.restoreArgs(unpacked));
    await container.expectOk();
  });

  it('say what --compress knows', async () => {
    const container = await start('memory_layout');
    for (const [flag, says] of [
      ['--compress=zstd:20', /cannot use --compress zstd:20: levels are 1 to 19/],
      ['--compress=gzip', /cannot use --compress gzip without --archive: page files are lz4 or zstd/],
      ['--compress=brotli', /cannot use --compress brotli: there are lz4, zstd and zstd:1 to zstd:19 for page files/],
      ['--compress=zstd:fast', /cannot use --compress zstd:fast: there are lz4, zstd and zstd:1 to zstd:19/],
      ['--compress=lz4:3', /cannot use --compress lz4:3: there are lz4, /],
    ] as const) {
      const refused = await container.stasis(container.checkpointArgs(container.imagesDirectory(), [flag]));
      assert.notEqual(refused.exitCode, 0);
      assert.match(refused.stderr, says);
    }
    await container.expectOk();
  });
});

function flipByte(file: string, offset: number): void {
  const fd = openSync(file, 'r+');
  const byte = Buffer.alloc(1);
  readSync(fd, byte, 0, 1, offset);
  byte[0]! ^= 0xff;
  writeSync(fd, byte, 0, 1, offset);
  closeSync(fd);
}
