// Our archives and images, as others read them.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { pack, withoutSignatures } from '../support/archives.js';
import { requires } from '../support/lanes.js';
import { stasisProgram } from '../support/paths.js';
import { peers } from '../support/peers.js';
import { mustRun } from '../support/run.js';
import { useTestBed } from '../support/test-bed.js';

const program = 'export SECRET=stasis-needle; n=0; while :; do n=$((n + 1)); echo $n; sleep 0.05; done | cat';

describe('archives', () => {
  const bed = useTestBed();

  const archive = async (): Promise<string> => {
    const container = await bed.start({ args: ['sh', '-c', program] });
    await container.waitForOutput(/3/);
    const file = join(bed.directory, 'archive.tar.zst');
    await container.must([
      'checkpoint',
      '--archive',
      file,
      '--ignore-rootfs',
      '--image',
      'localhost/busybox:test',
      'c1',
    ]);
    return file;
  };

  for (const form of ['stasis', 'podman', 'cri-o', 'containerd']) {
    it(`are shown, inspected and searched by checkpointctl: ${form}`, async function () {
      requires(this, 'peers');
      const file = await archive();
      const packed = join(bed.directory, 'packed.tar');
      await pack(file, '--to', form, '--output', packed);
      const shown = (await mustRun(peers.checkpointctl, ['show', packed])).stdout;
      assert.match(shown, /^c1\s+localhost\/busybox:test\s/m);
      const engine = { stasis: 'containerd', podman: 'Podman', 'cri-o': 'CRI-O', containerd: 'containerd' }[form]!;
      assert.match(shown, new RegExp(engine));
      const all = (await mustRun(peers.checkpointctl, ['inspect', '--all', packed])).stdout;
      for (const section of [
        /Process tree/,
        /Frozen time/i,
        /Overview of mounts/,
        /Open files/,
        /SECRET=stasis-needle/,
        /Checkpoint size/i,
      ])
        assert.match(all, section);
      const [described] = JSON.parse(
        (await mustRun(peers.checkpointctl, ['inspect', '--all', '--format', 'json', packed])).stdout,
      ) as Record<string, unknown>[];
      assert.equal(described!['container_name'], 'c1');
      for (const part of ['process_tree', 'file_descriptors', 'mounts', 'checkpoint_size', 'statistics'])
        assert.ok(described![part] !== undefined, `${part} is missing`);
      // By the name that the kubelet gives it.
      await mustRun('cp', [packed, join(bed.directory, 'checkpoint-pod_default-c1.tar')]);
      assert.match((await mustRun(peers.checkpointctl, ['list', bed.directory])).stdout, /\bc1\b/);
      const memory = (await mustRun(peers.checkpointctl, ['memparse', packed])).stdout;
      assert.match(memory, /\bsh\b/);
      const found = await mustRun(peers.checkpointctl, ['memparse', '--pid', '1', '--search', 'stasis-needle', packed]);
      assert.match(found.stdout, /stasis-needle/);
    });
  }

  it('become images that skopeo copies and buildah takes apart, annotations and all', async () => {
    const file = await archive();
    const layout = join(bed.directory, 'layout');
    await pack(file, '--to', 'oci', '--tag', 'ckpt', '--output', layout);
    const manifest = JSON.parse((await mustRun('skopeo', ['inspect', '--raw', `oci:${layout}:ckpt`])).stdout) as {
      annotations: Record<string, string>;
    };
    for (const mark of [
      'io.podman.annotations.checkpoint.runtime.name',
      'io.kubernetes.cri-o.annotations.checkpoint.name',
      'org.criu.checkpoint.container.name',
    ])
      assert.ok(manifest.annotations[mark] !== undefined && manifest.annotations[mark] !== '', mark);
    const copied = join(bed.directory, 'copied.tar');
    await mustRun('skopeo', ['copy', '--insecure-policy', `oci:${layout}:ckpt`, `oci-archive:${copied}:ckpt`]);
    await mustRun(stasisProgram, ['verify', copied]);
    const unpacked = join(bed.directory, 'unpacked');
    await mustRun(stasisProgram, ['unpack', copied, '--output', unpacked]);
    await mustRun(stasisProgram, ['inspect', join(unpacked, 'checkpoint')]);
    const storage = join(bed.directory, 'storage');
    const options = ['--root', storage, '--runroot', join(bed.directory, 'run'), '--storage-driver', 'vfs'];
    await mustRun('buildah', [...options, 'pull', ...withoutSignatures(bed.directory), `oci-archive:${copied}`]);
    assert.match((await mustRun('buildah', [...options, 'images'])).stdout, /ckpt|<none>/);
  });
});
