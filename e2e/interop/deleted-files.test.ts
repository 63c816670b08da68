// Deleted files go from CRIU to us and back: a container that looks at its files
// itself.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Container } from '../support/container.js';
import { requires } from '../support/lanes.js';
import { useTestBed } from '../support/test-bed.js';
import { checkpointByCriu, restoreByCriu } from '../support/with-criu.js';

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
    await checkpointByCriu(container);
    await container.restore();
    await container.expectOk();
  });

  it('that we have taken down are made again by CRIU', async () => {
    const images = await container.checkpoint();
    await restoreByCriu(container, images);
    await container.expectOk();
  });
});
