// containerd with SystemdCgroup in the options of its runtime: the scope of a
// task, as systemd and the kernel have it, from run to rm.
import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { hasController } from '../../support/cgroups.js';
import { Containerd, containerdSlice, countingInside } from '../../support/containerd.js';
import { openFor } from '../../support/open-manager.js';
import { mustRun } from '../../support/run.js';
import { assertScopeGone, assertScopeHolds, property } from '../../support/systemd.js';
import { useTestBed } from '../../support/test-bed.js';

const scopeOf = (id: string): string => `ctr-${id}.scope`;

describe("containerd's tasks in systemd's scopes", function () {
  this.timeout(300_000);
  const bed = useTestBed();
  let containerd: Containerd;

  beforeEach(async function () {
    containerd = await openFor(this, bed, ['daemons', 'systemd'], () => Containerd.open());
  });

  /** The task counts, and is all that the scope holds. */
  async function assertHeld(id: string, scope = scopeOf(id)): Promise<void> {
    await containerd.count(id);
    await assertScopeHolds(scope, (await containerd.task(id))!.pid, containerdSlice);
    if (hasController('memory')) assert.equal(await property('MemoryLimit', scope), String(64 << 20));
  }

  const limits = (): string[] => (hasController('memory') ? ['--memory-limit', String(64 << 20)] : []);

  it('are held after each of three restores, and by none after rm', async () => {
    await containerd.start('one', countingInside, ...limits());
    await assertHeld('one');
    const cgroup = await property('ControlGroup', scopeOf('one'));
    const images = join(bed.directory, 'images');
    mkdirSync(images);
    await containerd.must('task', 'checkpoint', '--image-path', images, 'one');
    await assertHeld('one');
    for (let round = 1; round <= 3; round += 1) {
      await containerd.must('container', 'checkpoint', '--rw', '--image', '--task', 'one', `saved/one:${round}`);
      await assertHeld('one');
      await containerd.remove('one');
      await assertScopeGone(scopeOf('one'), cgroup);
      await containerd.must('container', 'restore', '--live', '--rw', 'one', `saved/one:${round}`);
      await assertHeld('one');
    }
    await mustRun('systemctl', ['daemon-reload']);
    await assertHeld('one');
    await containerd.remove('one');
    await assertScopeGone(scopeOf('one'), cgroup);
  });
});
