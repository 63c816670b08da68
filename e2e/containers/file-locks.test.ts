import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { useTestBed } from '../support/test-bed.js';

describe('a container with file locks', () => {
  const bed = useTestBed();

  it('is not restored without one that somebody else has by then, and with all of them afterwards', async () => {
    const container = await bed.start({ args: ['/targets/file_locks'], targets: ['file_locks'], streams: 'pipe' });
    await container.waitForOutput(/READY|FAIL.*/);
    const images = await container.checkpoint();
    // Ends, and lets go, when its standard input does.
    const script = 'echo has it; read line';
    const other = spawn('flock', ['-n', join(container.rootfs, 'data/exclusive'), '-c', script]);
    try {
      assert.match(String((await once(other.stdout, 'data'))[0]), /has it/);
      const { exitCode, stderr } = await container.runDetached(container.restoreArgs(images));
      assert.equal(exitCode, 1);
      assert.match(
        stderr,
        /^cannot restore container "c1": [^\n]*flock[^\n]*EAGAIN[^\n]*; another process holds a lock on that file: let it release the lock, or end it, and restore again\n/,
      );
    } finally {
      other.stdin.end();
      await once(other, 'exit');
    }
    await container.restore();
    await container.expectOk();
  });
});
