// Others read our images without complaint: crit every single file,
// checkpointctl the archive that podman and CRI-O would make of them.
import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { requires } from '../support/lanes.js';
import { peers } from '../support/peers.js';
import { mustRun, run } from '../support/run.js';
import { useTestBed } from '../support/test-bed.js';

const program =
  'mkdir -p /dev/shm/x; echo text >/dev/shm/x/y; n=0; while :; do n=$((n + 1)); echo $n; sleep 0.05; done | cat';

describe('images', () => {
  const bed = useTestBed();

  it('are read by crit, file by file', async function () {
    requires(this, 'peers');
    const container = await bed.start({ args: ['sh', '-c', program] });
    await container.waitForOutput(/3/);
    const images = await container.checkpoint();
    await readEveryImage(images, 10);
    for (const what of ['ps', 'fds', 'mems', 'rss']) {
      const crit = peers.crit(['x', images, what]);
      const result = await run(crit.program, crit.args, { env: crit.env });
      assert.equal(result.exitCode, 0, `crit x ${what}: ${result.stderr}`);
    }
    const stats = peers.crit(['show', join(`${images}.work`, 'stats-dump')]);
    assert.match((await mustRun(stats.program, stats.args, { env: stats.env })).stdout, /frozen_time/);
  });

  for (const target of ['shared_anonymous', 'memfd', 'sysv_segments'])
    it(`of shared memory (${target}) are read by crit`, async function () {
      requires(this, 'peers');
      const container = await bed.start({ args: [`/targets/${target}`], targets: [target] });
      await container.waitForOutput(/READY/);
      const images = await container.checkpoint();
      assert.ok(readdirSync(images).some((name) => name.startsWith('pagemap-shmem-')));
      await readEveryImage(images, 15);
    });

  it('are shown by checkpointctl, with the process tree and statistics', async function () {
    requires(this, 'peers');
    const container = await bed.start({ args: ['sh', '-c', program] });
    await container.waitForOutput(/3/);
    const images = await container.checkpoint();
    const archive = join(bed.directory, 'archive');
    mkdirSync(archive);
    await mustRun('cp', ['-a', images, join(archive, 'checkpoint')]);
    await mustRun('cp', ['-a', join(`${images}.work`, 'stats-dump'), archive]);
    await mustRun('cp', ['-a', join(container.bundle, 'config.json'), join(archive, 'spec.dump')]);
    const metadata = {
      id: container.id,
      name: 'test',
      rootfsImageName: 'busybox',
      runtime: 'stasis',
      createdTime: new Date().toISOString(),
    };
    writeFileSync(join(archive, 'config.dump'), JSON.stringify(metadata));
    const file = join(bed.directory, 'archive.tar');
    // checkpointctl looks for the members by these names.
    await mustRun('tar', ['-cf', file, '-C', archive, 'checkpoint', 'stats-dump', 'spec.dump', 'config.dump']);
    assert.match((await mustRun(peers.checkpointctl, ['show', file])).stdout, /stasis/);
    const inspected = (
      await mustRun(peers.checkpointctl, ['inspect', '--stats', '--ps-tree', '--files', '--mounts', file])
    ).stdout;
    assert.match(inspected, /Process tree/i);
    assert.match(inspected, /\bsh\b/);
    assert.match(inspected, /Frozen time/i);
  });
});

async function readEveryImage(images: string, atLeast: number): Promise<void> {
  const files = readdirSync(images).filter(
    (name) => name.endsWith('.img') && !/^(pages|tmpfs|ghost|stasis)/.test(name),
  );
  assert.ok(files.length > atLeast, `only ${files.length} images`);
  for (const file of files) {
    const crit = peers.crit(['show', join(images, file)]);
    const result = await run(crit.program, crit.args, { env: crit.env });
    assert.equal(result.exitCode, 0, `${file}: ${result.stderr}`);
    const shown = JSON.parse(result.stdout) as { magic: string; entries: unknown[] };
    assert.ok(shown.magic.length > 0, file);
  }
}
