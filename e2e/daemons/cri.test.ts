// containerd's CRI service, asked as the kubelet asks: CheckpointContainer makes
// an archive, which checkpointctl shows; the container runs on. CreateContainer
// and StartContainer with the archive in place of an image bring it back.
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pack } from '../support/archives.js';
import { countingInside, type Containerd } from '../support/containerd.js';
import { containerState, type Cri } from '../support/cri.js';
import { daemonEnvironment, installedStasis } from '../support/daemon.js';
import { CriPods } from '../support/cri-pods.js';
import { stasisProgram } from '../support/paths.js';
import { alterCore, otherMachines } from '../support/other-machines.js';
import { peers } from '../support/peers.js';
import { assertAcl, setAcl } from '../support/access-lists.js';
import { Registry } from '../support/registry.js';
import { mustRun } from '../support/run.js';
import { mountSmall } from '../support/small-disk.js';
import { useTestBed } from '../support/test-bed.js';

describe('the CRI of containerd', () => {
  const bed = useTestBed();
  let containerd: Containerd;
  let cri: Cri;
  let pods: CriPods;

  beforeEach(async function () {
    pods = await CriPods.openFor(this, bed, 'peers');
    ({ containerd, cri } = pods);
  });

  async function checkpoint(container_id: string, name: string): Promise<string> {
    const location = join(bed.directory, name);
    await cri.call('CheckpointContainer', { container_id, location, timeout: 30 });
    return location;
  }

  const status = async (container_id: string): Promise<{ state: number; annotations: Record<string, string> }> =>
    (await cri.call('ContainerStatus', { container_id }))['status'] as never;
  const state = async (id: string): Promise<number> => (await status(id)).state;

  it('checkpoints a container into an archive that checkpointctl shows', async () => {
    const id = await pods.startCounter();
    await pods.countsOn(id);
    for (const name of ['first.tar', 'second.tar']) {
      const location = join(bed.directory, name);
      await cri.call('CheckpointContainer', { container_id: id, location, timeout: 30 });
      assert.equal(await state(id), containerState.running);
      await pods.countsOn(id);
      const members = (await mustRun('tar', ['-tf', location])).stdout.split('\n');
      for (const member of ['config.dump', 'spec.dump', 'stats-dump', 'dump.log', 'status', 'rootfs-diff.tar'])
        assert.ok(members.includes(member), `${member} is missing: ${members.join(' ')}`);
      assert.ok(members.includes('checkpoint/inventory.img'));
      const shown = (await mustRun(peers.checkpointctl, ['show', location])).stdout;
      assert.match(shown, /counter/);
      assert.match(shown, /containerd/);
      const inspected = (await mustRun(peers.checkpointctl, ['inspect', '--all', location])).stdout;
      assert.match(inspected, /sh -c|\bsh\b/);
      assert.match((await mustRun(stasisProgram, ['verify', location])).stdout, /sound: archive/);
    }
    await cri.call('StopContainer', { container_id: id, timeout: 0 });
    assert.equal(await state(id), containerState.exited);
    await cri.call('RemoveContainer', { container_id: id });
  });

  it('answers with one sentence where a checkpoint is refused, and the container runs on', async () => {
    const id = await pods.startCounter(`exec 5<>/dev/ptmx; ${countingInside}`);
    await pods.countsOn(id);
    const location = join(bed.directory, 'refused.tar');
    await assert.rejects(
      cri.call('CheckpointContainer', { container_id: id, location, timeout: 30 }),
      /cannot checkpoint[^\n]*: fd 5 of pid \d+ [^\n]*ptmx[^\n]*$/,
    );
    assert.equal(existsSync(location), false);
    assert.equal(await state(id), containerState.running);
    await pods.countsOn(id);
  });

  it('answers in one sentence that the disk is full, and the container runs on', async () => {
    const id = await pods.startCounter();
    await pods.countsOn(id);
    await mountSmall(bed, join(containerd.directory, 'tmp'));
    const location = join(bed.directory, 'refused.tar');
    await assert.rejects(
      cri.call('CheckpointContainer', { container_id: id, location, timeout: 30 }),
      /cannot write image \S+ in \S+: ENOSPC \(no space left on device\); free space on [^\n]*$/,
    );
    assert.equal(existsSync(location), false);
    assert.equal(await state(id), containerState.running);
    await pods.countsOn(id);
  });

  describe('with a registry', () => {
    let registry: Registry;
    let base: string;

    beforeEach(async () => {
      registry = await Registry.open();
      bed.onClose(() => registry.close());
      base = await pods.pullBox(registry);
    });

    it('restores what it has checkpointed from the archive, and pulls the image that it was made from', async () => {
      let id = await pods.startCounter(countingInside, base);
      let last = 0;
      for (let round = 1; round <= 2; round += 1) {
        const reached = await pods.countsOn(id);
        assert.ok(reached > last, `it had come to ${reached}, after ${last}`);
        last = reached;
        const location = await checkpoint(id, `${round}.tar`);
        await pods.remove(id);
        await cri.call('RemoveImage', { image: { image: base } });
        await containerd.collectGarbage('k8s.io');
        registry.requests.length = 0;
        id = await pods.startContainer(await pods.startPod(`again${round}`), location);
        const asked = (what: RegExp): boolean => registry.requests.some((request) => what.test(request));
        assert.ok(asked(/^HEAD \/v2\/box\/manifests\/sha256:/));
        // Of the second pull containerd has the content still.
        if (round === 1) assert.ok(asked(/^GET \/v2\/box\/blobs\/sha256:/));
        const { state, annotations } = await status(id);
        assert.equal(state, containerState.running);
        assert.equal(annotations['restored'], 'true');
      }
      assert.ok((await pods.countsOn(id)) > last);
    });

    it('restores what stasis pack has made an image of', async () => {
      const id = await pods.startCounter(countingInside, base);
      const reached = await pods.countsOn(id);
      const location = await checkpoint(id, 'cp.tar');
      await pods.remove(id);
      const layout = join(bed.directory, 'packed');
      await pack(location, '--to', 'oci', '--tag', 'cp', '--output', layout);
      const image = registry.add('counter', 'cp', layout);
      await cri.call('PullImage', { image: { image } });
      for (const name of ['one', 'two']) {
        const again = await pods.startContainer(await pods.startPod(name), image);
        assert.equal((await status(again)).annotations['restored'], 'true');
        assert.ok((await pods.countsOn(again)) >= reached);
      }
    });

    it('takes access control lists from what stasis has written', async () => {
      const rootfs = (id: string): string =>
        join(containerd.directory, 'state/io.containerd.runtime.v2.task/k8s.io', id, 'rootfs');
      const id = await pods.startCounter(countingInside, base);
      await pods.countsOn(id);
      mkdirSync(join(rootfs(id), 'shared'), { mode: 0o700 });
      await setAcl(join(rootfs(id), 'shared'), 'default');
      await setAcl(join(rootfs(id), 'count'), 'access');
      const [ours, packed, merged] = ['ours.tar', 'packed.tar', 'merged'].map((name) => join(bed.directory, name));
      const lower = join(bed.directory, 'box');
      const words = ['checkpoint', '--archive', ours!, '--lower', lower, '--leave-running', id];
      await mustRun(installedStasis, ['--root', '/run/containerd/runc/k8s.io', ...words], { env: daemonEnvironment() });
      await pack(ours!, '--to', 'containerd', '--output', packed!);
      // containerd itself writes no list, but knows the name by which the image is pulled: the rest is its own.
      const location = await checkpoint(id, 'cp.tar');
      await pods.remove(id);
      mkdirSync(merged!);
      await mustRun('tar', ['-xf', location, '-C', merged!]);
      await mustRun('tar', ['-xf', packed!, '-C', merged!, 'rootfs-diff.tar']);
      await mustRun('tar', ['-cf', location, '-C', merged!, '.']);
      const again = await pods.startContainer(await pods.startPod('again'), location);
      await assertAcl(join(rootfs(again), 'shared'), 'default');
      await assertAcl(join(rootfs(again), 'count'), 'access');
      assert.equal(await state(again), containerState.running);
    });

    async function saved(options: object = {}): Promise<string> {
      const command = ['sh', '-c', countingInside];
      const id = await pods.startContainer(await pods.startPod('pod'), base, { command, ...options });
      await pods.countsOn(id);
      const location = await checkpoint(id, 'cp.tar');
      await pods.remove(id);
      return location;
    }

    it('says that the image that it was made from is nowhere to be had', async () => {
      const location = await saved();
      await cri.call('RemoveImage', { image: { image: base } });
      registry.remove('box', '1');
      await assert.rejects(
        pods.startContainer(await pods.startPod('again'), location),
        /failed to pull checkpoint base image localhost:\d+\/box@sha256:[0-9a-f]{64}: [^\n]*not found[^\n]*$/,
      );
    });

    it('asks for the image that it was made from where its name says, whatever is configured', async () => {
      // Nobody listens there; containerd is told to ask elsewhere.
      mkdirSync(join(pods.hosts, '127.0.0.1:1'), { recursive: true });
      writeFileSync(join(pods.hosts, '127.0.0.1:1/hosts.toml'), `server = "http://${registry.host}"\n`);
      base = '127.0.0.1:1/box:1';
      await cri.call('PullImage', { image: { image: base } });
      const location = await saved();
      // Should containerd learn it: docs/managers.md says that it cannot.
      await assert.rejects(
        pods.startContainer(await pods.startPod('again'), location),
        isSentence(
          /failed to pull checkpoint base image 127\.0\.0\.1:1\/box@sha256:[0-9a-f]{64}: .* connection refused$/,
        ),
      );
    });

    for (const [what, change, sentence] of otherMachines) {
      it(`says that the archive is ${what}`, async () => {
        const location = await saved();
        const directory = join(bed.directory, 'archive');
        mkdirSync(directory);
        await mustRun('tar', ['-xf', location, '-C', directory]);
        rmSync(join(directory, 'checkpoint/stasis-manifest.json'));
        await alterCore(join(directory, 'checkpoint'), change);
        await mustRun('tar', ['-cf', location, '-C', directory, '.']);
        await assert.rejects(pods.startContainer(await pods.startPod('again'), location), isSentence(sentence));
      });
    }

    it('says that a volume of the checkpoint is missing from the container', async () => {
      const volume = join(bed.directory, 'volume');
      mkdirSync(volume);
      const mounts = [{ container_path: '/data', host_path: volume }];
      const location = await saved({ mounts });
      await assert.rejects(
        pods.startContainer(await pods.startPod('without'), location),
        isSentence(/cannot restore.*\/data/),
      );
      await pods.countsOn(await pods.startContainer(await pods.startPod('with'), location, { mounts }));
    });

    it('says that the name is in use, and whoever has it runs on', async () => {
      const location = await saved();
      const pod = await pods.startPod('again');
      const id = await pods.startContainer(pod, location);
      await assert.rejects(
        pods.startContainer(pod, location),
        isSentence(/failed to reserve container name.*is reserved for/),
      );
      await pods.countsOn(id);
    });

    it('says that the disk of the archive is full, and the container runs on', async () => {
      const id = await pods.startCounter();
      const disk = join(bed.directory, 'disk');
      await mountSmall(bed, disk);
      await assert.rejects(
        cri.call('CheckpointContainer', { container_id: id, location: join(disk, 'cp.tar'), timeout: 30 }),
        isSentence(/disk\/cp\.tar: no space left on device/),
      );
      assert.equal(await state(id), containerState.running);
      await pods.countsOn(id);
    });
  });
});

/** For assert.rejects: one line that says it. */
function isSentence(sentence: RegExp): (error: Error) => true {
  return ({ message }) => {
    assert.match(message, /^[^\n]+$/);
    assert.match(message, sentence);
    return true;
  };
}
