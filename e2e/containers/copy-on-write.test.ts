// A container that goes on while its memory is being written to images: it sees
// nothing of that, and the images hold one moment, whatever it writes meanwhile.
import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import type { Container } from '../support/container.js';
import { requires } from '../support/lanes.js';
import { childrenOf } from '../support/processes.js';
import type { Spec } from '../support/spec.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';

interface Result {
  readonly remarks: readonly string[];
  readonly timings: readonly { readonly phase: string; readonly ms: number }[];
}

/** Nobody else runs as this user: the kernel counts all of its processes. */
const kLimitedUser = 54_321;

describe('a container that is checkpointed while it writes', () => {
  const bed = useTestBed();
  const target = 'memory_while_written';

  for (const kind of ['plain', 'special'] as const) {
    const what = kind === 'plain' ? 'memory' : 'memory that a fork leaves out, empties or unlocks';
    it(`has all its ${what} in the images, as of one moment`, async () => {
      const container = await start(kind);
      for (let round = 1; round <= 3; round++) {
        const { remarks } = await checkpointLive(container, `images-${round}`);
        assert.deepEqual(remarks, [], 'it was not copied on write');
        await expectNoTwins(container);
        // The original ends; the picture goes on, and is checkpointed the next time.
        await container.must(['delete', '--force', container.id]);
        await container.restore(`images-${round}`);
      }
      await container.expectOk();
    });
  }

  it('has what its processes share in the images, as of the same moment', async () => {
    const container = await startShared();
    for (let round = 1; round <= 3; round++) {
      await checkpointLive(container, `images-${round}`);
      await container.must(['delete', '--force', container.id]);
      await container.restore(`images-${round}`);
    }
    await container.expectOk();
  });

  it('goes on unharmed with what its processes share', async () => {
    const container = await startShared();
    for (let round = 1; round <= 5; round++) await checkpointLive(container, `images-${round}`);
    await container.expectOk();
  });

  it('goes on unharmed itself', async () => {
    const container = await start('special');
    for (let round = 1; round <= 5; round++) await checkpointLive(container, `images-${round}`);
    await expectNoTwins(container);
    await container.expectOk();
  });

  it('is copied while it stands still if its memory limit leaves no room', async function () {
    requires(this, 'cgroup-v1');
    const container = await start('plain', (spec) => {
      spec.linux.resources = { ...spec.linux.resources, memory: { limit: 64 << 20 } };
    });
    const { remarks } = await checkpointLive(container, 'images');
    assert.match(remarks.join('\n'), /copied while the processes stood still: up to \d+ bytes/);
    await container.must(['delete', '--force', container.id]);
    await container.restore();
    await container.expectOk();
  });

  it('is copied while it stands still if its pids limit leaves no room', async function () {
    requires(this, 'cgroup-v1');
    // Two processes with two threads each.
    const container = await start('plain', (spec) => {
      spec.linux.resources = { ...spec.linux.resources, pids: { limit: 4 } };
    });
    const { remarks } = await checkpointLive(container, 'images');
    assert.match(remarks.join('\n'), /could not be forked \(EAGAIN\)/);
    await container.must(['delete', '--force', container.id]);
    await container.restore();
    await container.expectOk();
  });

  it('is copied while it stands still if its user may have no more processes', async () => {
    const container = await startTarget(target, ['limited'], (spec) => {
      spec.process.user = { uid: kLimitedUser, gid: kLimitedUser };
      // Who has CAP_SYS_RESOURCE or CAP_SYS_ADMIN is not limited.
      spec.process.capabilities = { bounding: [], effective: [], inheritable: [], permitted: [], ambient: [] };
    });
    const { remarks } = await checkpointLive(container, 'images');
    assert.match(remarks.join('\n'), /could not be forked \(EAGAIN\)/);
    await container.must(['delete', '--force', container.id]);
    await container.restore();
    await container.expectOk();
  });

  const start = (kind: string, adjust?: (spec: Spec) => void): Promise<Container> =>
    startTarget(target, [kind], adjust);
  const startShared = (): Promise<Container> => startTarget('shared_anonymous', []);

  async function startTarget(name: string, args: string[], adjust?: (spec: Spec) => void): Promise<Container> {
    const container = await bed.start({
      args: [`/targets/${name}`, ...args],
      targets: [name],
      adjust: (spec) => {
        delete spec.process.rlimits;
        adjust?.(spec);
      },
    });
    await container.waitForOutput(/READY|FAIL.*/);
    return container;
  }

  async function checkpointLive(container: Container, name: string): Promise<Result> {
    const images = container.imagesDirectory(name);
    mkdirSync(`${images}.work`, { recursive: true });
    const { stdout } = await container.must(container.checkpointArgs(images, ['--leave-running', '--json']));
    container.assertUntouched();
    return JSON.parse(stdout) as Result;
  }

  /** The twins of a checkpoint have gone from the lists of children when it returns. */
  async function expectNoTwins(container: Container): Promise<void> {
    const init = await container.initPid();
    await waitFor('the twins to be gone', () =>
      childrenOf(init).length === 1 && childrenOf(childrenOf(init)[0] ?? 0).length === 0 ? true : undefined,
    );
  }
});
