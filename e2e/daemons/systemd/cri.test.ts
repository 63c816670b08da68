// containerd's CRI with SystemdCgroup = true, as Kubernetes has it where systemd
// runs: the scope of a container, from CreateContainer to RemoveContainer.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { boxImage, countingInside, type Containerd } from '../../support/containerd.js';
import type { Cri } from '../../support/cri.js';
import { CriPods, criSlice } from '../../support/cri-pods.js';
import { Registry } from '../../support/registry.js';
import { assertScopeGone, assertScopeHolds, property } from '../../support/systemd.js';
import { useTestBed } from '../../support/test-bed.js';
import { readOrEmpty } from '../../support/processes.js';

const scopeOf = (id: string): string => `cri-containerd-${id}.scope`;

describe("containers of containerd's CRI in systemd's scopes", function () {
  this.timeout(300_000);
  const bed = useTestBed();
  let containerd: Containerd;
  let cri: Cri;
  let pods: CriPods;

  beforeEach(async function () {
    pods = await CriPods.openFor(this, bed, 'systemd');
    ({ containerd, cri } = pods);
  });

  /** It counts, and its scope holds it. */
  async function assertHeld(id: string): Promise<void> {
    await pods.countsOn(id);
    const cgroup = await property('ControlGroup', scopeOf(id));
    const hostPid = Number((await containerd.must('--namespace', 'k8s.io', 'task', 'ls')).match(pidOf(id))?.[1]);
    assert.match(readOrEmpty(`/proc/${hostPid}/cgroup`), new RegExp(`:${cgroup}$`, 'm'));
    await assertScopeHolds(scopeOf(id), hostPid, criSlice);
  }

  const pidOf = (id: string): RegExp => new RegExp(`^${id} +(\\d+) `, 'm');

  it('are held after CheckpointContainer and after a restore from the archive, and by none when they are removed', async () => {
    const registry = await Registry.open();
    bed.onClose(() => registry.close());
    const base = await pods.pullBox(registry);
    assert.notEqual(base, boxImage);
    let id = await pods.startCounter(countingInside, base);
    for (const round of [1, 2]) {
      await assertHeld(id);
      const location = join(bed.directory, `${round}.tar`);
      await cri.call('CheckpointContainer', { container_id: id, location, timeout: 30 });
      await assertHeld(id);
      const cgroup = await property('ControlGroup', scopeOf(id));
      await pods.remove(id);
      await assertScopeGone(scopeOf(id), cgroup);
      id = await pods.startContainer(await pods.startPod(`again${round}`), location);
    }
    await assertHeld(id);
    const cgroup = await property('ControlGroup', scopeOf(id));
    await pods.remove(id);
    await assertScopeGone(scopeOf(id), cgroup);
  });
});
