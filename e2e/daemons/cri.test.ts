// containerd's CRI service, asked as the kubelet asks: CheckpointContainer makes
// an archive, which checkpointctl shows; the container runs on. CreateContainer
// and StartContainer with the archive in place of an image bring it back.
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { hasController } from '../support/cgroups.js';
import { boxImage, Containerd, countingInside } from '../support/containerd.js';
import { containerState, Cri, namespaceMode } from '../support/cri.js';
import { installedStasis } from '../support/daemon.js';
import { requires } from '../support/lanes.js';
import { stasisProgram } from '../support/paths.js';
import { makeLayout } from '../support/oci-layout.js';
import { alterCore, otherMachines } from '../support/other-machines.js';
import { peers } from '../support/peers.js';
import { Registry } from '../support/registry.js';
import { makeRootfs } from '../support/rootfs.js';
import { mustRun } from '../support/run.js';
import { cgroupParent } from '../support/run-identity.js';
import { mountSmall } from '../support/small-disk.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';

const configuration = (hosts: string): string => `
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'native'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '${boxImage}'
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = '${hosts}'
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = 'linux/amd64'
  snapshotter = 'native'
[plugins.'io.containerd.cri.v1.runtime']
  # Lowering it needs CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = 'stasis'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.stasis]
  runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.stasis.options]
  BinaryName = '${installedStasis}'
`;

interface Pod {
  readonly pod_sandbox_id: unknown;
  readonly sandbox_config: { readonly metadata: { readonly name: string } };
}

describe('the CRI of containerd', () => {
  const bed = useTestBed();
  let containerd: Containerd;
  let cri: Cri;
  let withoutShares: string | undefined;

  beforeEach(async function () {
    this.timeout(120_000);
    requires(this, 'root', 'built', 'daemons', 'peers');
    if (withoutShares !== undefined) skipWithoutShares(this, withoutShares);
    containerd = await Containerd.open({ namespace: 'k8s.io', cri: configuration(hosts()) });
    const opened = containerd;
    bed.onClose(() => opened.close());
    const client = new Cri(containerd.socket);
    bed.onClose(async () => client.close());
    cri = client;
    if (hasController('cpu')) return;
    withoutShares = await refusalOfPods();
    if (withoutShares !== undefined) skipWithoutShares(this, withoutShares);
  });

  /** containerd gives every pod CPU shares, and has no option not to: what it says where nobody can set them. */
  async function refusalOfPods(): Promise<string | undefined> {
    try {
      await startPod('shares');
      return undefined;
    } catch (error) {
      const { message } = error as Error;
      if (/cpu\.weight: no such file or directory$/.test(message)) return message;
      throw error;
    }
  }

  function skipWithoutShares(context: Mocha.Context, said: string): never {
    console.log(`      skipped: no CPU controller is here, and containerd says: ${said}`);
    context.skip();
  }

  /** What `config_path` names: for each registry, where it is to be asked. */
  const hosts = (): string => join(bed.directory, 'hosts');

  const linux = {
    security_context: {
      namespace_options: { network: namespaceMode.node, pid: namespaceMode.container, ipc: namespaceMode.pod },
    },
  };

  /** A pod, which is gone after the test with all that is in it. */
  async function startPod(name: string): Promise<Pod> {
    const sandbox_config = {
      metadata: { name, uid: `${name}-uid`, namespace: 'default', attempt: 0 },
      log_directory: containerd.directory,
      linux: { cgroup_parent: cgroupParent, ...linux },
    };
    const { pod_sandbox_id } = await cri.call('RunPodSandbox', { config: sandbox_config });
    bed.onClose(async () => {
      await cri.call('StopPodSandbox', { pod_sandbox_id });
      await cri.call('RemovePodSandbox', { pod_sandbox_id });
    });
    return { pod_sandbox_id, sandbox_config };
  }

  /** `image`: of a name that was pulled or imported, or the path of an archive. */
  async function startContainer(pod: Pod, image: string, config: object = {}): Promise<string> {
    const { name } = pod.sandbox_config.metadata;
    const { container_id } = await cri.call('CreateContainer', {
      ...pod,
      config: {
        metadata: { name: 'counter', attempt: 0 },
        image: { image },
        log_path: `${name}.log`,
        linux,
        ...config,
      },
    });
    await cri.call('StartContainer', { container_id });
    return String(container_id);
  }

  async function startCounter(script = countingInside, image: string = boxImage): Promise<string> {
    return await startContainer(await startPod('pod'), image, { command: ['sh', '-c', script] });
  }

  async function count(container_id: string): Promise<number> {
    const { stdout } = await cri.call('ExecSync', { container_id, cmd: ['cat', '/count'], timeout: 10 });
    const numbers = Buffer.from(stdout as Uint8Array)
      .toString()
      .split('\n')
      .filter(Boolean)
      .map(Number);
    assert.deepEqual(
      numbers,
      numbers.map((_, index) => index + 1),
    );
    return numbers.length;
  }

  /** Returns how far it had come. */
  async function countsOn(id: string): Promise<number> {
    const before = await count(id);
    await waitFor('the container to count on', async () => ((await count(id)) > before ? true : undefined));
    return before;
  }

  async function checkpoint(container_id: string, name: string): Promise<string> {
    const location = join(bed.directory, name);
    await cri.call('CheckpointContainer', { container_id, location, timeout: 30 });
    return location;
  }

  async function remove(container_id: string): Promise<void> {
    await cri.call('StopContainer', { container_id, timeout: 0 });
    await cri.call('RemoveContainer', { container_id });
  }

  const status = async (container_id: string): Promise<{ state: number; annotations: Record<string, string> }> =>
    (await cri.call('ContainerStatus', { container_id }))['status'] as never;
  const state = async (id: string): Promise<number> => (await status(id)).state;

  it('checkpoints a container into an archive that checkpointctl shows', async () => {
    const id = await startCounter();
    await countsOn(id);
    for (const name of ['first.tar', 'second.tar']) {
      const location = join(bed.directory, name);
      await cri.call('CheckpointContainer', { container_id: id, location, timeout: 30 });
      assert.equal(await state(id), containerState.running);
      await countsOn(id);
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
    const id = await startCounter(`exec 5<>/dev/ptmx; ${countingInside}`);
    await countsOn(id);
    const location = join(bed.directory, 'refused.tar');
    await assert.rejects(
      cri.call('CheckpointContainer', { container_id: id, location, timeout: 30 }),
      /cannot checkpoint[^\n]*: fd 5 of pid \d+ [^\n]*ptmx[^\n]*$/,
    );
    assert.equal(existsSync(location), false);
    assert.equal(await state(id), containerState.running);
    await countsOn(id);
  });

  it('answers in one sentence that the disk is full, and the container runs on', async () => {
    const id = await startCounter();
    await countsOn(id);
    await mountSmall(bed, join(containerd.directory, 'tmp'));
    const location = join(bed.directory, 'refused.tar');
    await assert.rejects(
      cri.call('CheckpointContainer', { container_id: id, location, timeout: 30 }),
      /cannot write image \S+ in \S+: ENOSPC \(no space left on device\); free space on [^\n]*$/,
    );
    assert.equal(existsSync(location), false);
    assert.equal(await state(id), containerState.running);
    await countsOn(id);
  });

  describe('with a registry', () => {
    let registry: Registry;
    let base: string;

    beforeEach(async () => {
      registry = await Registry.open();
      bed.onClose(() => registry.close());
      const rootfs = join(bed.directory, 'box');
      await makeRootfs('busybox', rootfs);
      // Nothing of it is in containerd's store by way of the other image.
      writeFileSync(join(rootfs, 'etc/motd'), 'from a registry\n');
      await makeLayout(rootfs, 'box', join(bed.directory, 'layout'));
      base = registry.add('box', '1', join(bed.directory, 'layout'));
      await cri.call('PullImage', { image: { image: base } });
    });

    it('restores what it has checkpointed from the archive, and pulls the image that it was made from', async () => {
      let id = await startCounter(countingInside, base);
      let last = 0;
      for (let round = 1; round <= 2; round += 1) {
        const reached = await countsOn(id);
        assert.ok(reached > last, `it had come to ${reached}, after ${last}`);
        last = reached;
        const location = await checkpoint(id, `${round}.tar`);
        await remove(id);
        await cri.call('RemoveImage', { image: { image: base } });
        await containerd.collectGarbage('k8s.io');
        registry.requests.length = 0;
        id = await startContainer(await startPod(`again${round}`), location);
        const asked = (what: RegExp): boolean => registry.requests.some((request) => what.test(request));
        assert.ok(asked(/^HEAD \/v2\/box\/manifests\/sha256:/));
        // Of the second pull containerd has the content still.
        if (round === 1) assert.ok(asked(/^GET \/v2\/box\/blobs\/sha256:/));
        const { state, annotations } = await status(id);
        assert.equal(state, containerState.running);
        assert.equal(annotations['restored'], 'true');
      }
      assert.ok((await countsOn(id)) > last);
    });

    it('restores what stasis pack has made an image of', async () => {
      const id = await startCounter(countingInside, base);
      const reached = await countsOn(id);
      const location = await checkpoint(id, 'cp.tar');
      await remove(id);
      const layout = join(bed.directory, 'packed');
      await mustRun(stasisProgram, ['pack', location, '--to', 'oci', '--tag', 'cp', '--output', layout]);
      const image = registry.add('counter', 'cp', layout);
      await cri.call('PullImage', { image: { image } });
      for (const name of ['one', 'two']) {
        const again = await startContainer(await startPod(name), image);
        assert.equal((await status(again)).annotations['restored'], 'true');
        assert.ok((await countsOn(again)) >= reached);
      }
    });

    async function saved(options: object = {}): Promise<string> {
      const command = ['sh', '-c', countingInside];
      const id = await startContainer(await startPod('pod'), base, { command, ...options });
      await countsOn(id);
      const location = await checkpoint(id, 'cp.tar');
      await remove(id);
      return location;
    }

    it('says that the image that it was made from is nowhere to be had', async () => {
      const location = await saved();
      await cri.call('RemoveImage', { image: { image: base } });
      registry.remove('box', '1');
      await assert.rejects(
        startContainer(await startPod('again'), location),
        /failed to pull checkpoint base image localhost:\d+\/box@sha256:[0-9a-f]{64}: [^\n]*not found[^\n]*$/,
      );
    });

    it('asks for the image that it was made from where its name says, whatever is configured', async () => {
      // Nobody listens there; containerd is told to ask elsewhere.
      mkdirSync(join(hosts(), '127.0.0.1:1'), { recursive: true });
      writeFileSync(join(hosts(), '127.0.0.1:1/hosts.toml'), `server = "http://${registry.host}"\n`);
      base = '127.0.0.1:1/box:1';
      await cri.call('PullImage', { image: { image: base } });
      const location = await saved();
      // Should containerd learn it: docs/managers.md says that it cannot.
      await assert.rejects(
        startContainer(await startPod('again'), location),
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
        await assert.rejects(startContainer(await startPod('again'), location), isSentence(sentence));
      });
    }

    it('says that a volume of the checkpoint is missing from the container', async () => {
      const volume = join(bed.directory, 'volume');
      mkdirSync(volume);
      const mounts = [{ container_path: '/data', host_path: volume }];
      const location = await saved({ mounts });
      await assert.rejects(startContainer(await startPod('without'), location), isSentence(/cannot restore.*\/data/));
      await countsOn(await startContainer(await startPod('with'), location, { mounts }));
    });

    it('says that the name is in use, and whoever has it runs on', async () => {
      const location = await saved();
      const pod = await startPod('again');
      const id = await startContainer(pod, location);
      await assert.rejects(
        startContainer(pod, location),
        isSentence(/failed to reserve container name.*is reserved for/),
      );
      await countsOn(id);
    });

    it('says that the disk of the archive is full, and the container runs on', async () => {
      const id = await startCounter();
      const disk = join(bed.directory, 'disk');
      await mountSmall(bed, disk);
      await assert.rejects(
        cri.call('CheckpointContainer', { container_id: id, location: join(disk, 'cp.tar'), timeout: 30 }),
        isSentence(/disk\/cp\.tar: no space left on device/),
      );
      assert.equal(await state(id), containerState.running);
      await countsOn(id);
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
