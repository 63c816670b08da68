// Deleted files go from CRIU to us and back: a container that looks at its files
// itself.
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Container } from '../support/container.js';
import { requires } from '../support/lanes.js';
import { withCriu } from '../support/peers.js';
import { useTestBed } from '../support/test-bed.js';

describe('deleted files', function () {
  const bed = useTestBed();
  let container: Container;

  beforeEach(async function () {
    requires(this, 'peers');
    // CRIU's own limit is 1 MiB. POSIX locks on deleted files that are mapped do not survive a restore by it.
    const configuration = join(bed.directory, 'criu.conf');
    writeFileSync(configuration, 'ghost-limit 100M\n');
    container = await bed.start({
      args: ['/targets/deleted_file', '/tmp', 'unlocked'],
      targets: ['deleted_file'],
      streams: 'pipe',
      adjust: (spec) => {
        delete spec.process.rlimits;
        spec.annotations = { ...spec.annotations, 'org.criu.config': configuration };
      },
    });
    await container.waitForOutput(/READY|FAIL.*/);
  });

  it('that CRIU has taken down are made again by us', async () => {
    const images = container.imagesDirectory();
    mkdirSync(`${images}.work`, { recursive: true });
    const { exitCode, stderr } = await container.runc(container.checkpointArgs(images), { env: withCriu });
    assert.equal(exitCode, 0, stderr);
    await container.restore();
    await container.expectOk();
  });

  it('that we have taken down are made again by CRIU', async () => {
    const images = await container.checkpoint();
    const { exitCode, stderr } = await container.runDetached(container.restoreArgs(images), 'runc', withCriu);
    const log = join(`${images}.work`, 'restore.log');
    assert.equal(exitCode, 0, `${stderr}\n${existsSync(log) ? readFileSync(log, 'utf8').slice(-2000) : ''}`);
    await container.expectOk();
  });
});
