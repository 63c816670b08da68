// Restores into scopes, under a real systemd (hack/systemd-host.ts): what it,
// runc and the kernel say of them.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { cgroupDirectories, processesIn } from '../support/cgroups.js';
import type { Container } from '../support/container.js';
import { requires } from '../support/lanes.js';
import { readOrEmpty } from '../support/processes.js';
import { run } from '../support/run.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';

const counter = ['sh', '-c', 'trap "exit 7" TERM; n=0; while :; do n=$((n + 1)); echo $n; sleep 0.02; done'];
const scope = 'stasis-c1.scope';
const slice = 'stasistest-e2e.slice';

describe('systemd scopes', () => {
  const bed = useTestBed();

  before(function () {
    requires(this, 'root', 'systemd');
  });

  async function start(): Promise<Container> {
    const container = await bed.start({ args: counter, slice });
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
    const commands = processesIn(container.cgroupPath).map((pid) => readFileSync(`/proc/${pid}/comm`, 'utf8').trim());
    assert.deepEqual(
      commands.filter((name) => !['sh', 'sleep'].includes(name)),
      [],
    );
    await container.checkpoint('last');
    assert.equal(await property('ActiveState'), 'inactive');
    assert.deepEqual(cgroupDirectories(container.cgroupPath), []);
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

async function property(name: string): Promise<string> {
  const result = await run('systemctl', ['show', '--value', '--property', name, scope]);
  assert.equal(result.exitCode, 0, result.stderr);
  return result.stdout.trim();
}

async function assertCounting(container: Container): Promise<void> {
  const before = container.output().length;
  await waitFor('the container to count', () => (container.output().length > before ? true : undefined));
}
