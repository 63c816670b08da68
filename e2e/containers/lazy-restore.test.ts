// Containers that run before their memory is back: what they see is what they
// had, whatever they do meanwhile; and if it cannot come, they end.
import assert from 'node:assert/strict';
import {
  closeSync,
  openSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { requires } from '../support/lanes.js';
import { coreProgram } from '../support/paths.js';
import type { Container } from '../support/container.js';
import { isAlive, processState, processesOfProgram, processesWhere } from '../support/processes.js';
import type { Spec } from '../support/spec.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';

describe('a lazy restore', () => {
  const bed = useTestBed();
  const target = 'memory_while_filled';

  it('gives a program what it had while it touches, forks, moves and throws away memory', async () => {
    const container = await checkpointed(64);
    for (let round = 1; round <= 3; round++) {
      await container.restore('images', ['--lazy-pages']);
      await expectFilled(container, round);
      await expectNoHelpers();
      await container.must(['delete', '--force', container.id]);
    }
    await container.restore('images', ['--lazy-pages']);
    await expectFilled(container, 4);
    await container.expectOk();
  });

  it('answers what the program asks for before it fills in the background', async () => {
    const container = await checkpointed(256);
    const pages = await restoreHeld(container);
    process.kill(pages, 'SIGCONT');
    await expectFilled(container, 1);
    await expectNoHelpers();
    await container.expectOk();
  });

  it('does not need the images any more once it has returned', async () => {
    const container = await checkpointed(64);
    const pages = await restoreHeld(container);
    rmSync(container.imagesDirectory(), { recursive: true });
    process.kill(pages, 'SIGCONT');
    await expectFilled(container, 1);
    await container.expectOk();
  });

  // Frames are decoded for the page that is asked for, and for those in the background.
  for (const codec of ['lz4', 'zstd'])
    it(`brings in pages that are compressed with ${codec}, of images that are gone`, async () => {
      const container = await checkpointed(256, { flags: ['--compress', codec] });
      assert.ok(readdirSync(container.imagesDirectory()).some((name) => /^pages-1\.img\.(lz4|zst)$/.test(name)));
      const pages = await restoreHeld(container);
      rmSync(container.imagesDirectory(), { recursive: true });
      process.kill(pages, 'SIGCONT');
      await expectFilled(container, 1);
      await expectNoHelpers();
      await container.expectOk();
    });

  it('brings in pages of a container in a user namespace, of images that are gone', async function () {
    requires(this, 'userfaultfd-device');
    const ids = [{ containerID: 0, hostID: 100_000, size: 65_536 }];
    const container = await checkpointed(64, {
      adjust: (spec) => {
        spec.linux.namespaces.push({ type: 'user' });
        spec.linux.uidMappings = ids;
        spec.linux.gidMappings = ids;
      },
    });
    const pages = await restoreHeld(container);
    rmSync(container.imagesDirectory(), { recursive: true });
    const init = await container.initPid();
    assert.doesNotMatch(opened(init).join('\n'), /userfaultfd/);
    process.kill(pages, 'SIGCONT');
    await expectFilled(container, 1);
    await expectNoHelpers();
    await container.expectOk();
  });

  it('is finished before the container is checkpointed again', async () => {
    const container = await checkpointed(64, { go: false });
    const pages = await restoreHeld(container);
    const lock = join(container.stateRoot, container.id);
    const second = container.checkpoint('second');
    await waitFor('the checkpoint to have opened the container', () =>
      processesWhere((pid) => opened(pid).some((path) => path.startsWith(lock))).length > 0 ? true : undefined,
    );
    assert.deepEqual(readdirSync(container.imagesDirectory('second')), []);
    process.kill(pages, 'SIGCONT');
    await second;
    await expectNoHelpers();
    writeFileSync(join(container.rootfs, 'go'), '');
    hook(container, 'true');
    await container.restore('second', ['--lazy-pages']);
    await expectFilled(container, 1);
    await container.expectOk();
  });

  it('leaves nothing when the container is deleted meanwhile', async () => {
    const container = await checkpointed(64);
    const pages = await restoreHeld(container);
    await container.must(['delete', '--force', container.id]);
    process.kill(pages, 'SIGCONT');
    await expectNoHelpers();
    assert.equal(container.hasStateDirectory(), false);
  });

  const failures: readonly {
    what: string;
    flags?: readonly string[];
    says: RegExp;
    harm: (container: Container, pages: number) => void;
  }[] = [
    {
      what: 'the page process is killed',
      says: /the page process \(pid \d+\) was killed by signal 9 before all pages were in/,
      harm: (_, pages) => process.kill(pages, 'SIGKILL'),
    },
    {
      what: 'the images are cut short',
      says: /page file "pages-1\.img" has become shorter than the restore needs/,
      harm: (container, pages) => {
        truncateSync(pageFile(container), 8192);
        process.kill(pages, 'SIGCONT');
      },
    },
    {
      what: 'compressed images are cut short',
      flags: ['--compress'],
      says: /a compressed page file has become shorter/,
      harm: (container, pages) => {
        truncateSync(`${pageFile(container)}.lz4`, 8192);
        process.kill(pages, 'SIGCONT');
      },
    },
    {
      what: 'the images are altered',
      says: /page file "pages-1\.img" is not the file that was written: its digest differs/,
      harm: (container, pages) => {
        alter(container);
        process.kill(pages, 'SIGCONT');
      },
    },
  ];
  for (const { what, flags = [], says, harm } of failures) {
    it(`ends the container, and says why, when ${what}`, async () => {
      const container = await checkpointed(64, { flags });
      const pages = await restoreHeld(container);
      const init = await container.initPid();
      harm(container, pages);
      await container.waitForExit(init, 20_000);
      await expectNoHelpers();
      const log = readFileSync(join(`${container.imagesDirectory()}.work`, 'restore.log'), 'utf8');
      assert.match(log, says);
      assert.match(log, /the container has been ended, because what is missing of its memory would have read as zeros/);
      // Altered pages are known for what they are when the last one is in: the program may have met them before.
      if (what !== 'the images are altered') assert.doesNotMatch(container.output(), /FAIL/);
      assert.equal((await container.state()).status, 'stopped');
    });
  }

  it('does not let a container live whose page process dies before the release', async () => {
    const container = await checkpointed(64);
    hook(container, 'kill -KILL');
    const result = await container.runDetached(container.restoreArgs(container.imagesDirectory(), ['--lazy-pages']));
    // Noticed before the release or just after it: the restore fails, or the container ends before it sees anything.
    if (result.exitCode !== 0) {
      assert.equal(container.hasStateDirectory(), false);
    } else {
      await waitFor('the end of the container', async () =>
        (await container.state()).status === 'stopped' ? true : undefined,
      );
    }
    await expectNoHelpers();
    const log = readFileSync(join(`${container.imagesDirectory()}.work`, 'restore.log'), 'utf8');
    assert.match(log, /the page process \(pid \d+\) was killed by signal 9/);
    assert.doesNotMatch(container.output(), /FAIL|STARTED/);
  });

  const pageFile = (container: Container): string => join(container.imagesDirectory(), 'pages-1.img');

  /** With the program's own pages last touched: only the digest can tell. */
  function alter(container: Container): void {
    const fd = openSync(pageFile(container), 'r+');
    try {
      writeSync(fd, Buffer.from('altered'), 0, 7, 40 << 20);
    } finally {
      closeSync(fd);
    }
  }

  /** A container that has been checkpointed and ended; it begins its work as soon as it runs again. */
  async function checkpointed(
    ballastMib: number,
    options: { readonly go?: false; readonly flags?: readonly string[]; readonly adjust?: (spec: Spec) => void } = {},
  ): Promise<Container> {
    const container = await bed.start({
      args: [`/targets/${target}`, String(ballastMib)],
      targets: [target],
      adjust: (spec) => {
        delete spec.process.rlimits;
        options.adjust?.(spec);
      },
    });
    await container.waitForOutput(/READY|FAIL.*/);
    await container.checkpoint('images', options.flags);
    if (options.go !== false) writeFileSync(join(container.rootfs, 'go'), '');
    return container;
  }

  function rewrite(container: Container, change: (spec: Spec) => void): void {
    const path = join(container.bundle, 'config.json');
    const spec = JSON.parse(readFileSync(path, 'utf8')) as Spec;
    change(spec);
    writeFileSync(path, JSON.stringify(spec));
  }

  /** Hooks run when the page process is there and the container does not run yet. */
  function hook(container: Container, command: string): void {
    const script = `for p in /proc/[0-9]*; do
      if [ "$(cat $p/comm 2>/dev/null)" = stasis-pages ] && ls -l $p/fd | grep -q "${bed.directory}"; then
        ${command} \${p#/proc/}; echo \${p#/proc/} >"${bed.directory}/pages.pid"
      fi
    done`;
    rewrite(container, (spec) => {
      const hooks = { createRuntime: [{ path: '/bin/sh', args: ['sh', '-c', script], env: ['PATH=/usr/bin:/bin'] }] };
      Object.assign(spec, { hooks });
    });
  }

  /** Released with its page process stopped: it waits for the first page that it needs. Returns the page process. */
  async function restoreHeld(container: Container): Promise<number> {
    hook(container, 'kill -STOP');
    await container.restore('images', ['--lazy-pages']);
    const pages = Number(readFileSync(join(bed.directory, 'pages.pid'), 'utf8'));
    bed.onClose(async () => {
      if (isAlive(pages) && processState(pages) === 'T') process.kill(pages, 'SIGCONT');
      return Promise.resolve();
    });
    assert.equal(processState(pages), 'T');
    return pages;
  }

  async function expectFilled(container: Container, times: number): Promise<void> {
    const said = await container.waitForOutput(new RegExp(`FAIL.*|(FILLED[^]*){${times}}`), 60_000);
    assert.doesNotMatch(said[0], /FAIL/);
  }

  /** Neither a page process nor a guardian is left. */
  async function expectNoHelpers(): Promise<void> {
    await waitFor('the helpers to be gone', () => (helpers().length === 0 ? true : undefined), {
      timeoutMs: 20_000,
      seen: () => helpers().join(', '),
    });
  }

  function opened(pid: number): string[] {
    try {
      return readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`));
    } catch {
      return [];
    }
  }

  function helpers(): number[] {
    const names = ['stasis-pages', 'stasis-guardian'];
    return processesOfProgram(coreProgram).filter((pid) => {
      try {
        return isAlive(pid) && names.includes(readFileSync(`/proc/${pid}/comm`, 'utf8').trim());
      } catch {
        return false;
      }
    });
  }
});
