// podman with --cgroup-manager=systemd: the scopes of a container and of its
// conmon, as systemd and the kernel have them, from run to rm.
import assert from 'node:assert/strict';
import { renameSync } from 'node:fs';
import { basename, join } from 'node:path';
import { cgroupDirectories, cgroupVersion, hasController, processesIn } from '../../support/cgroups.js';
import { openFor } from '../../support/open-manager.js';
import { Podman } from '../../support/podman.js';
import { readOrEmpty } from '../../support/processes.js';
import { mustRun } from '../../support/run.js';
import { assertScopeGone, property } from '../../support/systemd.js';
import { useTestBed } from '../../support/test-bed.js';

/** What is the container's own, not of one start of it. */
const lasting = [
  ...['ActiveState', 'Slice', 'Description', 'Delegate', 'DefaultDependencies', 'TimeoutStopUSec'],
  ...['DevicePolicy', 'DeviceAllow', 'MemoryLimit', 'MemoryMax', 'CPUQuotaPerSecUSec', 'CPUShares', 'TasksMax'],
];

describe("podman in systemd's scopes", function () {
  this.timeout(300_000);
  const bed = useTestBed();
  let podman: Podman;

  beforeEach(async function () {
    podman = await openFor(this, bed, ['podman', 'systemd'], () => Podman.open(join(bed.directory, 'podman')));
  });

  const isCrun = (): boolean => basename(podman.set.base ?? '') === 'crun';

  const scopeOf = async (name: string): Promise<string> => `libpod-${await podman.inspect(name, '{{.Id}}')}.scope`;
  const conmonScopeOf = async (name: string): Promise<string> =>
    `libpod-conmon-${await podman.inspect(name, '{{.Id}}')}.scope`;

  async function propertiesOf(scope: string): Promise<readonly string[]> {
    const { stdout } = await mustRun('systemctl', ['show', '--property', lasting.join(','), scope]);
    // systemd has lists in any order; runc 1.3 writes the major number of char-pts.
    const lines = stdout.replace('char-136 ', 'char-pts ').trim().split('\n').sort();
    // A restore allows the devices that runc does (docs/limitations.md).
    return isCrun() ? lines.filter((line) => !line.startsWith('DeviceAllow=')) : lines;
  }

  const cgroupOf = async (scope: string): Promise<string> => await property('ControlGroup', scope);

  /** The container counts, and is all that its scope holds; so with its conmon. */
  async function assertHeld(name: string, slice = 'machine.slice'): Promise<void> {
    await podman.count(name);
    const asked = '{{.Id}} {{.State.Pid}} {{.State.ConmonPid}} {{.State.Restored}}';
    const [id, init, conmon, restored] = (await podman.inspect(name, asked)).split(' ');
    const [scope, conmonScope] = [`libpod-${id}.scope`, `libpod-conmon-${id}.scope`];
    for (const unit of [scope, conmonScope]) assert.equal(await property('ActiveState', unit), 'active', unit);
    assert.equal(await property('Slice', scope), slice);
    // crun has the processes one level deeper.
    const cgroup = join(await cgroupOf(scope), isCrun() ? 'container' : '');
    // In each hierarchy that systemd or the runtime has made it in: the same place.
    for (const line of readOrEmpty(`/proc/${init}/cgroup`).trim().split('\n')) {
      const [, controllers = '', path = ''] = line.split(':', 3);
      if (cgroupVersion() === 2 && controllers !== '') continue;
      // A container that runc 1.1 has started is in the slice's, there, with stasis or without.
      if (controllers === 'devices' && restored === 'false') continue;
      assert.equal(path, cgroup, line);
    }
    const held = processesIn(cgroup);
    assert.ok(held.includes(Number(init)), `${init} is not among ${held.join(' ')}`);
    for (const pid of held) assert.match(readOrEmpty(`/proc/${pid}/comm`), /^(sh|sleep|)$/m, `process ${pid}`);
    assert.match(readOrEmpty(`/proc/${conmon}/cgroup`), new RegExp(`:.*/${conmonScope}$`, 'm'));
  }

  /** Neither systemd nor a hierarchy knows anything of them any more. */
  async function assertGone(...scopes: readonly string[]): Promise<void> {
    for (const scope of scopes) await assertScopeGone(scope, `/machine.slice/${scope}`);
  }

  const limits = (): string[] => [
    ...(hasController('memory') ? ['--memory', '64m'] : []),
    ...(hasController('cpu') ? ['--cpus', '0.5', '--cpu-shares', '512'] : []),
    ...(hasController('pids') ? ['--pids-limit', '100'] : []),
  ];

  it('is held by scopes with the same properties after each restore, and by none after rm', async () => {
    await podman.start('c', ...limits());
    const scopes = [await scopeOf('c'), await conmonScopeOf('c')] as const;
    await assertHeld('c');
    const before = await propertiesOf(scopes[0]);
    assert.ok(before.includes('DevicePolicy=strict'), before.join('\n'));
    if (hasController('pids')) assert.ok(before.includes('TasksMax=100'), before.join('\n'));
    const started = await property('ActiveEnterTimestampMonotonic', scopes[0]);
    await podman.must('container', 'checkpoint', '--leave-running', 'c');
    await assertHeld('c');
    assert.equal(await property('ActiveEnterTimestampMonotonic', scopes[0]), started, 'it is another scope');
    for (let round = 1; round <= 2; round += 1) {
      await podman.must('container', 'checkpoint', 'c');
      await assertGone(...scopes);
      await podman.must('container', 'restore', 'c');
      await assertHeld('c');
      assert.deepEqual(await propertiesOf(scopes[0]), before);
    }
    await mustRun('systemctl', ['daemon-reload']);
    await assertHeld('c');
    assert.deepEqual(await propertiesOf(scopes[0]), before);
    await podman.must('stop', 'c');
    assert.equal(await podman.inspect('c', '{{.State.ExitCode}}'), '7');
    await assertGone(...scopes);
    const id = await podman.inspect('c', '{{.Id}}');
    await podman.must('rm', 'c');
    await podman.assertNothingLeft([id]);
  });

  it('is held by a scope of its own after an import, and so is each clone', async () => {
    const archive = join(bed.directory, 'c.tar');
    await podman.start('c', ...limits());
    const original = await podman.inspect('c', '{{.Id}}');
    const before = await propertiesOf(await scopeOf('c'));
    await podman.must('container', 'checkpoint', '--export', archive, 'c');
    await podman.must('rm', 'c');
    await podman.must('container', 'restore', '--import', archive);
    await podman.must('container', 'restore', '--import', archive, '--name', 'clone');
    for (const name of ['c', 'clone']) {
      await assertHeld(name);
      const scope = await scopeOf(name);
      const id = await podman.inspect(name, '{{.Id}}');
      assert.deepEqual(
        await propertiesOf(scope),
        before.map((line) => line.replace(original, id)),
      );
    }
    const scopes = [await scopeOf('c'), await scopeOf('clone'), await conmonScopeOf('c'), await conmonScopeOf('clone')];
    await podman.must('rm', '-f', '-t', '0', 'clone');
    await assertHeld('c');
    await podman.must('rm', '-f', '-t', '0', 'c');
    await assertGone(...scopes);
  });

  it('is held in the slice that --cgroup-parent names', async () => {
    await podman.start('c', '--cgroup-parent', 'stasistest-podman.slice');
    const conmonScope = await conmonScopeOf('c');
    await assertHeld('c', 'stasistest-podman.slice');
    await podman.must('container', 'checkpoint', 'c');
    await podman.must('container', 'restore', 'c');
    await assertHeld('c', 'stasistest-podman.slice');
    const scope = await scopeOf('c');
    const cgroup = await cgroupOf(scope);
    await podman.must('rm', '-f', '-t', '0', 'c');
    await assertGone(scope, conmonScope);
    assert.deepEqual(cgroupDirectories(cgroup), []);
  });

  it('leaves no scope behind when a restore fails, and the next one has its name', async () => {
    await podman.start('c');
    const scopes = [await scopeOf('c'), await conmonScopeOf('c')];
    await podman.must('container', 'checkpoint', '--keep', 'c');
    const images = await podman.imagesDirectory('c');
    renameSync(join(images, 'core-1.img'), join(bed.directory, 'core-1.img'));
    const refused = await podman.run('container', 'restore', '--keep', 'c');
    assert.notEqual(refused.exitCode, 0);
    assert.match(refused.stderr, /"core-1.img" is missing/);
    await assertGone(...scopes);
    renameSync(join(bed.directory, 'core-1.img'), join(images, 'core-1.img'));
    await podman.must('container', 'restore', 'c');
    await assertHeld('c');
  });
});
