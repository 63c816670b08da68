// Restores into scopes, under a real systemd (hack/systemd-host.ts): what it,
// runc and the kernel say of them.
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { cgroupDirectories, cgroupVersion, hasController, processesIn } from '../support/cgroups.js';
import type { Container } from '../support/container.js';
import { requires } from '../support/lanes.js';
import { peers } from '../support/peers.js';
import { readOrEmpty } from '../support/processes.js';
import { mustRun } from '../support/run.js';
import type { Spec } from '../support/spec.js';
import { assertCounting } from '../support/counting.js';
import { property, scope, slice } from '../support/systemd.js';
import { useTestBed } from '../support/test-bed.js';

const counter = ['sh', '-c', 'trap "exit 7" TERM; n=0; while :; do n=$((n + 1)); echo $n; sleep 0.02; done'];

describe('systemd scopes', () => {
  const bed = useTestBed();

  before(function () {
    requires(this, 'root', 'systemd');
  });

  async function start(adjust: (spec: Spec) => void = () => undefined): Promise<Container> {
    const container = await bed.start({ args: counter, slice, adjust });
    await container.waitForOutput(/^3$/m);
    return container;
  }

  it('hold a container after each of three cycles, and go with it', async () => {
    const container = await start();
    await container.cycle(3);
    await assertCounting(container);
    assert.equal(container.cgroupPath, `/stasistest.slice/${slice}/${scope}`);
    assert.match(
      readOrEmpty(`/proc/${await container.initPid()}/cgroup`),
      new RegExp(`:${container.cgroupPath}$`, 'm'),
    );
    assert.equal(await property('ActiveState'), 'active');
    assert.equal(await property('Slice'), slice);
    // The placeholder has gone.
    assert.ok(processesIn(container.cgroupPath).includes(await container.initPid()));
    // One that ends meanwhile is a sleep of the counter's.
    const commands = processesIn(container.cgroupPath).map((pid) => readOrEmpty(`/proc/${pid}/comm`).trim());
    assert.deepEqual(
      commands.filter((name) => !['sh', 'sleep', ''].includes(name)),
      [],
    );
    await container.checkpoint('last');
    assert.equal(await property('ActiveState'), 'inactive');
    assert.deepEqual(cgroupDirectories(container.cgroupPath), []);
  });

  it('have the limits of the container, which outlive a reload of systemd', async function () {
    const container = await start(({ linux }) => {
      linux.resources = {
        devices: [{ allow: false, access: 'rwm' }],
        ...(hasController('memory') ? { memory: { limit: 64 << 20 } } : {}),
        ...(hasController('cpu') ? { cpu: { shares: 512, quota: 50_000, period: 100_000 } } : {}),
        // As many as the container has.
        ...(hasController('pids') ? { pids: { limit: 2 } } : {}),
      };
    });
    await container.cycle();
    await assertCounting(container);
    const limits = async (): Promise<Record<string, string>> => {
      const init = readOrEmpty(`/proc/${await container.initPid()}/cgroup`);
      const read = (controller: string, file: string): string => {
        const path = new RegExp(`:${controller}:(.*)$`, 'm').exec(init)?.[1] ?? '';
        return readOrEmpty(join('/sys/fs/cgroup', controller, path, file)).trim();
      };
      return {
        memory: read('memory', 'memory.limit_in_bytes'),
        shares: read('cpu', 'cpu.shares'),
        quota: read('cpu', 'cpu.cfs_quota_us'),
        pids: read('pids', 'pids.max'),
        // systemd writes them anew, in an order of its own.
        devices: read('devices', 'devices.list').split('\n').sort().join(', '),
      };
    };
    const before = await limits();
    if (cgroupVersion() === 1) {
      assert.deepEqual(
        { ...before, devices: before['devices']!.includes('a *:* rwm') },
        { memory: String(64 << 20), shares: '512', quota: '50000', pids: '2', devices: false },
      );
      assert.deepEqual(
        [await property('MemoryLimit'), await property('CPUShares'), await property('TasksMax')],
        [String(64 << 20), '512', '2'],
      );
      assert.equal(await property('CPUQuotaPerSecUSec'), '500ms');
    }
    assert.equal(await property('DevicePolicy'), 'strict');
    assert.match(await property('DeviceAllow'), /char-pts rwm/);
    assert.equal(await property('Delegate'), 'yes');
    await mustRun('systemctl', ['daemon-reload']);
    await assertCounting(container);
    assert.deepEqual(await limits(), before);
    // Its devices are the same, too. An exec has threads of its own, for which two are not enough.
    await mustRun('systemctl', ['set-property', '--runtime', scope, 'TasksMax=64']);
    assert.match(await container.exec(['sh', '-c', 'echo x >/dev/null && echo written']), /written/);
  });

  it('have the properties that annotations ask for', async () => {
    const annotate = (spec: Spec): void => {
      spec.annotations = {
        'org.systemd.property.TimeoutStopSec': 'uint64 7',
        'org.systemd.property.Description': "'a counter'",
        'org.systemd.property.After': "['basic.target']",
      };
    };
    const container = await start(annotate);
    await container.cycle();
    assert.deepEqual([await property('TimeoutStopUSec'), await property('Description')], ['7s', 'a counter']);
    assert.match(await property('After'), /basic.target/);
  });

  it('take containers that were checkpointed in a cgroup of the other driver, and the other way round', async () => {
    const inScope = await start();
    const images = await inScope.checkpoint();
    const elsewhere = await bed.prepare({ args: counter, id: 'c2' });
    // The same root file system: what the container has open is in there.
    const config = join(elsewhere.bundle, 'config.json');
    const spec = JSON.parse(readFileSync(config, 'utf8')) as Spec;
    writeFileSync(config, JSON.stringify({ ...spec, root: { ...spec.root, path: inScope.rootfs } }));
    await elsewhere.mustRunDetached(elsewhere.restoreArgs(images));
    await assertCounting(elsewhere);
    assert.ok(processesIn(elsewhere.cgroupPath).length > 0);
    assert.equal(await property('LoadState'), 'not-found');
    await elsewhere.checkpoint('back');
    await inScope.restore('back');
    await assertCounting(inScope);
    assert.equal(await property('ActiveState'), 'active');
  });

  it('hold a prepared container until it is started', async () => {
    const container = await start();
    await container.checkpoint();
    const reached = container.output().length;
    await container.restore('images', ['--prepare']);
    assert.equal((await container.state()).status, 'created');
    assert.equal(await property('ActiveState'), 'active');
    assert.equal(container.output().length, reached);
    await container.must(['start', container.id]);
    await assertCounting(container);
  });

  it('hold what crun manages, in a cgroup of its own', async function () {
    requires(this, 'cgroup-v2', 'peers');
    const container = await bed.start({ args: counter, slice, base: peers.crun });
    await container.waitForOutput(/^3$/m);
    await container.cycle(2);
    await assertCounting(container);
    assert.match(container.cgroupPath, /stasis-c1.scope\/container$/);
    assert.ok(processesIn(container.cgroupPath).includes(await container.initPid()));
    const pid = await container.initPid();
    for (const args of [
      ['ps', 'c1'],
      ['exec', 'c1', 'true'],
      ['kill', 'c1', 'KILL'],
    ]) {
      const result = await container.runc(args);
      assert.equal(result.exitCode, 0, `${args.join(' ')}: ${result.stderr}`);
    }
    await container.waitForExit(pid);
    await container.must(['delete', container.id]);
    assert.equal(await property('LoadState'), 'not-found');
  });

  it("serve runc's own verbs after a restore", async () => {
    const container = await start();
    await container.cycle();
    const pid = await container.initPid();
    const state = JSON.parse(readFileSync(join(container.stateRoot, container.id, 'state.json'), 'utf8')) as {
      config: { cgroups: { Systemd: boolean; parent: string; name: string } };
    };
    assert.deepEqual(
      [state.config.cgroups.Systemd, state.config.cgroups.parent, state.config.cgroups.name],
      [true, slice, 'c1'],
    );
    const must = async (...args: string[]): Promise<string> => {
      const result = await container.runc(args);
      assert.equal(result.exitCode, 0, `${args.join(' ')}: ${result.stderr}`);
      return result.stdout;
    };
    assert.match(await must('ps', container.id), new RegExp(`\\b${pid}\\b`));
    assert.equal((await must('exec', container.id, 'cat', '/proc/1/comm')).trim(), 'sh');
    await must('pause', container.id);
    await must('resume', container.id);
    await must('kill', container.id, 'TERM');
    await container.waitForExit(pid);
    await must('delete', container.id);
    assert.equal(await property('LoadState'), 'not-found');
  });
});
