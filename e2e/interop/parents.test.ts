// A checkpoint leaves pages to one that CRIU has made.
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { requires } from '../support/lanes.js';
import { useTestBed } from '../support/test-bed.js';
import { checkpointByCriu, restoreByCriu } from '../support/with-criu.js';

describe('a parent that CRIU has made', () => {
  const bed = useTestBed();

  it('is compared with, and restored together with its child', async function () {
    requires(this, 'peers');
    const container = await bed.start({
      args: ['/targets/mostly_still'],
      targets: ['mostly_still'],
      streams: 'pipe',
      adjust: (spec) => {
        delete spec.process.rlimits;
      },
    });
    await container.waitForOutput(/READY|FAIL.*/);
    const parent = await checkpointByCriu(container, ['--leave-running'], 'one');
    const child = container.imagesDirectory('two');
    mkdirSync(`${child}.work`, { recursive: true });
    assert.ok(!existsSync(join(parent, 'stasis-manifest.json')));
    const { stdout } = await container.must(container.checkpointArgs(child, ['--parent-path', '../one', '--json']));
    const { pages, remarks } = JSON.parse(stdout) as {
      pages: { written: number; leftToParent: number };
      remarks: string[];
    };
    const still = (2 * (48 << 20)) / 4096;
    assert.ok(pages.written < 3000 && pages.leftToParent > still - 3000, JSON.stringify(pages));
    assert.match(remarks.join('\n'), /pages that were compared with the parent's are equal/);
    await container.restore('two');
    await container.expectOk();
  });
});

describe('a chain of ours with shared memory', () => {
  const bed = useTestBed();

  it('is restored by CRIU', async function () {
    requires(this, 'peers');
    const container = await bed.start({
      args: ['/targets/shared_mostly_still'],
      targets: ['shared_mostly_still'],
      streams: 'pipe',
      adjust: (spec) => {
        delete spec.process.rlimits;
      },
    });
    await container.waitForOutput(/READY|FAIL.*/);
    await container.checkpoint('one', ['--pre-dump']);
    await container.checkpoint('two', ['--pre-dump', '--parent-path', '../one']);
    const images = await container.checkpoint('three', ['--parent-path', '../two']);
    const bytes = readdirSync(images)
      .filter((name) => /^pages-[0-9]+\.img$/.test(name))
      .reduce((sum, name) => sum + statSync(join(images, name)).size, 0);
    assert.ok(bytes < 3000 * 4096, `${bytes} bytes of pages`);
    await restoreByCriu(container, images);
    await container.expectOk();
  });
});
