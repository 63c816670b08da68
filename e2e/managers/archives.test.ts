// podman takes what stasis packs: archives to import, images to restore; and
// stasis takes podman's containers, with the upper layer of their overlay.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { pack } from '../support/archives.js';
import { openFor } from '../support/open-manager.js';
import { stasisProgram } from '../support/paths.js';
import { Podman } from '../support/podman.js';
import { mustRun } from '../support/run.js';
import { useTestBed } from '../support/test-bed.js';
import { assertWithoutGap } from '../support/counting.js';

describe('archives for podman', () => {
  const bed = useTestBed();
  let podman: Podman;

  beforeEach(async function () {
    podman = await openFor(this, bed, ['podman'], () => Podman.open(join(bed.directory, 'podman')));
  });

  const exported = async (): Promise<string> => {
    const archive = join(bed.directory, 'podman.tar.gz');
    await podman.start('c');
    await podman.must('exec', 'c', 'sh', '-c', 'echo changed >/tmp/new && rm /etc/group');
    await podman.must('container', 'checkpoint', '--export', archive, '--compress', 'gzip', 'c');
    await podman.must('rm', 'c');
    return archive;
  };

  it('are imported after a round trip through an OCI image', async () => {
    const archive = await exported();
    assert.match(
      (await mustRun(stasisProgram, ['verify', archive])).stdout,
      /sound: archive \(podman\) of a checkpoint of "c"/,
    );
    const image = join(bed.directory, 'image.tar');
    const packed = join(bed.directory, 'packed.tar.zst');
    await pack(archive, '--from', 'podman', '--to', 'oci-archive', '--tag', 'ckpt', '--output', image);
    await pack(image, '--tag', 'ckpt', '--to', 'podman', '--output', packed);
    await podman.must('container', 'restore', '--import', packed);
    assertWithoutGap(await podman.count('c'));
    assert.equal(await podman.must('exec', 'c', 'cat', '/tmp/new'), 'changed');
    assert.equal(await podman.must('exec', 'c', 'sh', '-c', 'ls /etc | grep -c "^group$" || true'), '0');
  });

  it('are restored as images', async () => {
    const image = join(bed.directory, 'image.tar');
    await pack(await exported(), '--to', 'oci-archive', '--tag', 'ckpt', '--output', image);
    const id = await podman.pullArchive(image);
    await podman.must('container', 'restore', '--name', 'again', id);
    await podman.count('again');
    assert.equal(await podman.must('exec', 'again', 'cat', '/tmp/new'), 'changed');
  });

  it('are made of a container of podman that runs on', async () => {
    await podman.start('c');
    await podman.must('exec', 'c', 'sh', '-c', 'echo changed >/tmp/new && rm /etc/group');
    const id = await podman.inspect('c', '{{.Id}}');
    const archive = join(bed.directory, 'direct.tar');
    await mustRun(stasisProgram, ['checkpoint', '--archive', archive, '--leave-running', id]);
    await podman.count('c');
    assert.match((await mustRun(stasisProgram, ['verify', archive])).stdout, /every member has its digest/);
    assert.deepEqual(JSON.parse((await mustRun('tar', ['-xOf', archive, 'deleted.files'])).stdout), ['/etc/group']);
    const diff = await mustRun('sh', ['-c', 'tar -xOf "$1" rootfs-diff.tar | tar -t', 'sh', archive]);
    assert.match(diff.stdout, /^tmp\/new$/m);
  });
});
