// What can go wrong around a checkpoint or a restore: each time one sentence
// with the remedy as the last line on stderr, a non-zero exit status, and
// nothing lost.
import assert from 'node:assert/strict';
import { cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { cgroupDirectories, processesIn } from '../support/cgroups.js';
import type { Container } from '../support/container.js';
import { stasisProgram } from '../support/paths.js';
import { startPipeline, type Pipeline } from '../support/pipeline.js';
import { lastLine, mustRun, run, type CommandResult } from '../support/run.js';
import { useTestBed } from '../support/test-bed.js';

describe('what goes wrong', () => {
  const bed = useTestBed();

  describe('around a checkpoint', () => {
    const refused: readonly {
      readonly what: string;
      readonly says: RegExp;
      readonly attempt: (container: Container) => Promise<CommandResult>;
    }[] = [
      {
        what: 'a disk without room',
        says: /ENOSPC|no space/i,
        attempt: async (container) => await onMount(container, 'size=96k', []),
      },
      {
        what: 'a disk without room for pages',
        says: /ENOSPC|no space/i,
        attempt: async (container) => await onMount(container, 'size=256k', []),
      },
      {
        what: 'a directory that cannot be written',
        says: /EROFS|read-only/i,
        attempt: async (container) => await onMount(container, 'ro', []),
      },
      {
        what: 'an image path that is a file',
        says: /not a directory|ENOTDIR|EEXIST/i,
        attempt: async (container) => {
          const file = join(container.directory, 'a-file');
          writeFileSync(file, '');
          return await container.stasis(['checkpoint', '--image-path', file, container.id]);
        },
      },
      {
        what: 'a flag whose effect is not built',
        says: /lazy-pages/,
        attempt: async (container) => await container.stasis(['checkpoint', '--lazy-pages', container.id]),
      },
      {
        what: 'a container that does not exist',
        says: /nobody.*(does not exist|no container)|(does not exist|no container).*nobody|does not exist/i,
        attempt: async (container) => await container.stasis(['checkpoint', 'nobody']),
      },
      {
        what: 'a caller who is not root',
        says: /root/,
        attempt: async (container) =>
          await run('setpriv', [
            ...['--reuid=65534', '--regid=65534', '--clear-groups', stasisProgram],
            ...['--root', container.stateRoot, ...container.checkpointArgs(container.imagesDirectory())],
          ]),
      },
    ];

    for (const { what, says, attempt } of refused) {
      it(`refuses ${what} and lets the container run on`, async () => {
        const pipeline = await startPipeline(bed);
        const result = await attempt(pipeline.container);
        assertRefusal(result, says);
        await unharmed(pipeline);
      });
    }

    it('names everything that it cannot carry, in one go', async () => {
      const container = await bed.start({ args: ['/targets/refused'], targets: ['refused'] });
      const made = await container.waitForOutput(/io_uring (-?\d+) userfaultfd (-?\d+)\nREADY/);
      const result = await container.stasis(container.checkpointArgs(container.imagesDirectory()));
      assert.notEqual(result.exitCode, 0);
      if (made[1] !== '-1') assert.match(result.stderr, /io_uring/);
      if (made[2] !== '-1') assert.match(result.stderr, /userfaultfd/);
      assert.ok(made[1] !== '-1' || made[2] !== '-1', 'the kernel gave the target neither');
      assert.match(lastLine(result.stderr), /^cannot checkpoint container "c1": /);
      container.assertUntouched();
      writeFileSync(join(container.rootfs, 'check'), '');
      await container.waitForOutput(/^OK$/m);
    });

    it('says so when init has died meanwhile', async () => {
      const container = await bed.start({ args: ['sleep', '1000'] });
      const pid = await container.initPid();
      process.kill(pid, 'SIGKILL');
      await container.waitForExit(pid);
      assertRefusal(
        await container.stasis(container.checkpointArgs(container.imagesDirectory())),
        /ended|stopped|not running/,
      );
    });
  });

  describe('around a restore', () => {
    it('refuses images that are truncated, missing or altered, whichever it is', async () => {
      const { container, images } = await checkpointed();
      const accepted: string[] = [];
      for (const file of readdirSync(images)) {
        for (const [harm, doHarm] of Object.entries(harms)) {
          const copy = join(container.directory, 'harmed');
          rmSync(copy, { recursive: true, force: true });
          cpSync(images, copy, { recursive: true });
          if (!doHarm(join(copy, file))) continue;
          // Without a manifest they look like CRIU's images, which have none and are restored as well.
          if (file === 'stasis-manifest.json' && harm === 'missing') continue;
          const result = await container.runDetached(container.restoreArgs(copy));
          const label = `${file} ${harm}`;
          if (isMerelyInformation(file)) {
            if (result.exitCode === 0) await container.must(['delete', '--force', container.id]);
            continue;
          }
          if (result.exitCode === 0) {
            accepted.push(label);
            await container.must(['delete', '--force', container.id]);
            continue;
          }
          assert.match(lastLine(result.stderr), /^cannot (restore|read)/, `${label}: "${lastLine(result.stderr)}"`);
          assertNothingLeft(container);
        }
      }
      assert.deepEqual(accepted, [], 'restored all the same');
      await container.restore();
    }).timeout(300_000);

    it('refuses images mixed from two containers', async () => {
      const { container, images } = await checkpointed();
      const other = await bed.start({ id: 'c2', args: ['sleep', '1000'] });
      const otherImages = await other.checkpoint('other');
      const core = readdirSync(images).find((name) => name.startsWith('core-')) ?? '';
      cpSync(join(otherImages, 'core-1.img'), join(images, core));
      assertRefusal(await container.runDetached(container.restoreArgs(images)), /core-/);
      assertNothingLeft(container);
    });

    it('refuses an id that is taken, and leaves its owner alone', async () => {
      const pipeline = await startPipeline(bed);
      const { container } = pipeline;
      const images = await container.checkpoint('images', ['--leave-running']);
      assertRefusal(await container.runDetached(container.restoreArgs(images)), /exists|taken|in use/);
      await unharmed(pipeline);
    });

    it('refuses a bundle that is missing, and one without config.json', async () => {
      const { container, images } = await checkpointed();
      const withBundle = (bundle: string): string[] =>
        container.restoreArgs(images).map((word) => (word === container.bundle ? bundle : word));
      assertRefusal(await container.runDetached(withBundle('/nowhere')), /\/nowhere/);
      const empty = join(bed.directory, 'empty');
      mkdirSync(empty);
      assertRefusal(await container.runDetached(withBundle(empty)), /config\.json/);
      await container.restore();
    });

    it('refuses a directory without images', async () => {
      const container = await bed.prepare({ args: ['sleep', '1000'] });
      const empty = join(bed.directory, 'no-images');
      mkdirSync(empty);
      assertRefusal(
        await container.runDetached(container.restoreArgs(empty)),
        /inventory|no checkpoint|not a checkpoint/,
      );
      assertRefusal(await container.runDetached(container.restoreArgs('/nowhere/images')), /\/nowhere\/images/);
    });
  });

  it('says which base runtime is missing', async () => {
    const result = await run(stasisProgram, ['list'], { env: { STASIS_RUNTIME: '/nowhere/runc' } });
    assertRefusal(result, /\/nowhere\/runc/);
  });

  async function checkpointed(): Promise<{ container: Container; images: string }> {
    const { container } = await startPipeline(bed);
    return { container, images: await container.checkpoint() };
  }

  /** A checkpoint into a tmpfs of its own, mounted with the given options. */
  async function onMount(container: Container, options: string, flags: readonly string[]): Promise<CommandResult> {
    const images = container.imagesDirectory('mounted');
    mkdirSync(images);
    await mustRun('mount', ['-t', 'tmpfs', '-o', options, 'tmpfs', images]);
    try {
      return await container.stasis(['checkpoint', '--image-path', images, ...flags, container.id]);
    } finally {
      await mustRun('umount', ['-l', images]);
    }
  }
});

/** Ways to spoil a file; false where there is nothing to spoil. */
const harms: Readonly<Record<string, (file: string) => boolean>> = {
  truncated: (file) => {
    const size = readFileSync(file).length;
    if (size < 2) return false;
    truncateSync(file, Math.floor(size / 2));
    return true;
  },
  missing: (file) => {
    rmSync(file);
    return true;
  },
  altered: (file) => {
    const bytes = readFileSync(file);
    if (bytes.length === 0) return false;
    const at = Math.floor(bytes.length / 2);
    bytes[at] = (bytes[at] ?? 0) ^ 0x55;
    writeFileSync(file, bytes);
    return true;
  },
};

/** Files for people and managers, which no restore reads. */
function isMerelyInformation(file: string): boolean {
  return /^(stats-|.*\.log$|(descriptors|stasis-timings)\.json$)/.test(file);
}

function assertRefusal(result: CommandResult, says: RegExp): void {
  const sentence = lastLine(result.stderr);
  assert.notEqual(result.exitCode, 0, `${result.command} succeeded`);
  assert.match(sentence, says);
  assert.match(sentence, /cannot|does not exist|already exists|requires/, `not a sentence: "${sentence}"`);
  assert.equal(result.stdout, '');
}

async function unharmed(pipeline: Pipeline): Promise<void> {
  pipeline.container.assertUntouched();
  await pipeline.goesOn();
  pipeline.isGapless();
}

function assertNothingLeft(container: Container): void {
  assert.deepEqual(processesIn(container.cgroupPath), []);
  assert.deepEqual(cgroupDirectories(container.cgroupPath), []);
  assert.equal(existsSync(join(container.stateRoot, container.id, 'state.json')), false);
}
