// Inotify instances go from CRIU to us and back: a container that looks at its
// watches itself.
import type { Container } from '../support/container.js';
import { requires } from '../support/lanes.js';
import { useTestBed } from '../support/test-bed.js';
import { checkpointByCriu, restoreByCriu } from '../support/with-criu.js';

describe('inotify instances', function () {
  const bed = useTestBed();
  let container: Container;

  beforeEach(async function () {
    requires(this, 'peers');
    container = await bed.start({
      args: ['/targets/inotify', '/data', 'plain'],
      targets: ['inotify'],
      streams: 'pipe',
      adjust: (spec) => {
        delete spec.process.rlimits;
      },
    });
    await container.waitForOutput(/READY|FAIL.*/);
  });

  it('that CRIU has taken down are watched again by us', async () => {
    await checkpointByCriu(container);
    await container.restore();
    await container.expectOk();
  });

  it('that we have taken down are watched again by CRIU', async () => {
    const images = await container.checkpoint();
    await restoreByCriu(container, images);
    await container.expectOk();
  });
});
