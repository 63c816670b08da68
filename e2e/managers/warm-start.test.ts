// podman starts a slow program warm, and knows nothing of checkpoints: two
// annotations, and the hook that hack/install brings along.
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { requires } from '../support/lanes.js';
import { installedPrefix, Podman } from '../support/podman.js';
import { makeRootfs } from '../support/rootfs.js';
import { mustRun } from '../support/run.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';

/** Builds a table of 300 MB in some half a minute, notes that it has, and answers from it. */
const program = `
import time
with open("/shared/builds", "a") as builds: builds.write("built\\n")
table = {}
for start in range(1, 1500000):
    n, steps = start, 0
    while n > 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    table[start] = "%08d %032d %09d" % (start, start * start, steps)
print("ready", len(table), flush=True)
n = 0
while True:
    n += 1
    print("answer", n, table[27][-9:], flush=True)
    time.sleep(0.02)
`;

describe('podman, warm', function () {
  this.timeout(300_000);
  const bed = useTestBed();

  it('starts a slow program a second time without its building anything again', async function () {
    requires(this, 'root', 'built', 'podman');
    const podman = await Podman.open(join(bed.directory, 'podman'));
    bed.onClose(() => podman.close());
    const rootfs = join(bed.directory, 'python');
    await makeRootfs('debian', rootfs);
    await mustRun('tar', ['-C', rootfs, '-cf', `${rootfs}.tar`, '.']);
    await podman.must('import', `${rootfs}.tar`, 'python');
    const shared = join(bed.directory, 'shared');
    mkdirSync(shared);
    writeFileSync(join(shared, 'slow.py'), program);
    const images = join(bed.directory, 'slow.images');

    const start = async (name: string): Promise<number> => {
      const startedAt = performance.now();
      await podman.must(
        ...['--hooks-dir', join(installedPrefix, 'share/containers/oci/hooks.d')],
        ...['run', '-d', '--name', name, '--network', 'none', '-v', `${shared}:/shared`],
        ...['--annotation', `org.stasis.restore=${images}`],
        ...['--annotation', 'org.stasis.checkpoint-when=log:^ready'],
        ...['python', 'python3', '/shared/slow.py'],
      );
      await waitFor(
        `an answer of ${name}`,
        async () => (/answer/.test(await podman.must('logs', name)) ? true : undefined),
        {
          timeoutMs: 120_000,
        },
      );
      return performance.now() - startedAt;
    };

    const cold = await start('cold');
    await waitFor('the checkpoint', () => (existsSync(images) ? true : undefined), {
      timeoutMs: 60_000,
      seen: () => (existsSync(`${images}.log`) ? readFileSync(`${images}.log`, 'utf8') : 'no log'),
    });
    const before = await answers(podman, 'cold');
    await waitFor('the first container to go on', async () =>
      (await answers(podman, 'cold')).length > before.length ? true : undefined,
    );
    const warm = await start('warm');
    console.log(
      `      first start ${cold.toFixed(0)} ms, second start ${warm.toFixed(0)} ms: ${(cold / warm).toFixed(1)} times faster`,
    );
    assert.ok(cold / warm >= 5, 'the second start is not five times faster');
    assert.equal(readFileSync(join(shared, 'builds'), 'utf8'), 'built\n', 'the second start has built the table again');
    assert.doesNotMatch(await podman.must('logs', 'warm'), /ready/);
    // Two containers from then on.
    assert.equal(await podman.must('ps', '--format', '{{.Names}}', '--sort', 'names'), 'cold\nwarm');
    assert.match(await podman.must('exec', 'warm', 'python3', '-c', 'print(6 * 7)'), /42/);
    const ids = [await podman.inspect('cold', '{{.Id}}'), await podman.inspect('warm', '{{.Id}}')];
    await podman.must('rm', '-f', '-t', '0', 'cold', 'warm');
    await podman.assertNothingLeft(ids);
  });
});

async function answers(podman: Podman, name: string): Promise<readonly string[]> {
  return (await podman.must('logs', name)).split('\n').filter((line) => line.startsWith('answer'));
}
