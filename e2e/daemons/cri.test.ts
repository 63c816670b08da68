// containerd's CRI service, asked as the kubelet asks: CheckpointContainer makes
// an archive, which checkpointctl shows; the container runs on.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { hasController } from '../support/cgroups.js';
import { boxImage, Containerd, countingInside } from '../support/containerd.js';
import { containerState, Cri, namespaceMode } from '../support/cri.js';
import { installedStasis } from '../support/daemon.js';
import { requires } from '../support/lanes.js';
import { stasisProgram } from '../support/paths.js';
import { peers } from '../support/peers.js';
import { mustRun } from '../support/run.js';
import { cgroupParent } from '../support/run-identity.js';
import { mountSmall } from '../support/small-disk.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';

const configuration = `
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'native'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '${boxImage}'
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

describe('the CRI of containerd', () => {
  const bed = useTestBed();
  let containerd: Containerd;
  let cri: Cri;

  beforeEach(async function () {
    this.timeout(60_000);
    requires(this, 'root', 'built', 'daemons', 'peers');
    if (!hasController('cpu')) {
      console.log('      skipped: containerd sets CPU shares for every pod, and no CPU controller is here');
      this.skip();
    }
    containerd = await Containerd.open({ namespace: 'k8s.io', cri: configuration });
    const opened = containerd;
    bed.onClose(() => opened.close());
    const client = new Cri(containerd.socket);
    bed.onClose(async () => client.close());
    cri = client;
  });

  const node = { network: namespaceMode.node, pid: namespaceMode.container, ipc: namespaceMode.pod };

  async function startContainer(script: string): Promise<string> {
    const sandbox_config = {
      metadata: { name: 'pod', uid: 'pod-uid', namespace: 'default', attempt: 0 },
      log_directory: containerd.directory,
      linux: { cgroup_parent: cgroupParent, security_context: { namespace_options: node } },
    };
    const { pod_sandbox_id } = await cri.call('RunPodSandbox', { config: sandbox_config });
    bed.onClose(async () => {
      await cri.call('StopPodSandbox', { pod_sandbox_id });
      await cri.call('RemovePodSandbox', { pod_sandbox_id });
    });
    const { container_id } = await cri.call('CreateContainer', {
      pod_sandbox_id,
      config: {
        metadata: { name: 'counter', attempt: 0 },
        image: { image: boxImage },
        command: ['sh', '-c', script],
        log_path: 'counter.log',
        linux: { security_context: { namespace_options: node } },
      },
      sandbox_config,
    });
    await cri.call('StartContainer', { container_id });
    return String(container_id);
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

  async function countsOn(id: string): Promise<void> {
    const before = await count(id);
    await waitFor('the container to count on', async () => ((await count(id)) > before ? true : undefined));
  }

  const state = async (container_id: string): Promise<unknown> =>
    ((await cri.call('ContainerStatus', { container_id }))['status'] as { state: number }).state;

  it('checkpoints a container into an archive that checkpointctl shows', async () => {
    const id = await startContainer(countingInside);
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
    const id = await startContainer(`exec 5<>/dev/ptmx; ${countingInside}`);
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
    const id = await startContainer(countingInside);
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
});
