// File locks go from CRIU to us and back: a container that looks at its locks
// itself, from outside of the process that has them.
import type { Container } from '../support/container.js';
import { requires } from '../support/lanes.js';
import { useTestBed } from '../support/test-bed.js';
import { checkpointByCriu, restoreByCriu } from '../support/with-criu.js';

describe('file locks', function () {
  const bed = useTestBed();
  let container: Container;

  beforeEach(async function () {
    requires(this, 'peers');
    // CRIU 4.2 loses POSIX locks on files that are mapped, because it closes what it made the mapping from, and does not
    // find those of a process on an open file that it shares with another.
    container = await bed.start({
      args: ['/targets/file_locks', 'plain'],
      targets: ['file_locks'],
      streams: 'pipe',
      adjust: (spec) => {
        delete spec.process.rlimits;
      },
    });
    await container.waitForOutput(/READY|FAIL.*/);
  });

  it('that CRIU has taken down are taken again by us', async () => {
    await checkpointByCriu(container, ['--file-locks']);
    await container.restore();
    await container.expectOk();
  });

  it('that we have taken down are taken again by CRIU', async () => {
    const images = await container.checkpoint();
    await restoreByCriu(container, images, ['--file-locks']);
    await container.expectOk();
  });
});
