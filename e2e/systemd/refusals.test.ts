// What a restore into a scope cannot have, and what is left when it fails or
// is killed: no unit, no cgroup, no placeholder.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { cgroupDirectories, processesIn } from '../support/cgroups.js';
import type { Container } from '../support/container.js';
import { requires } from '../support/lanes.js';
import { coreProgram, stasisProgram } from '../support/paths.js';
import { childrenOf, isAlive, processesOfProgram, programOf, readOrEmpty } from '../support/processes.js';
import { lastLine, mustRun } from '../support/run.js';
import { assertCounting } from '../support/counting.js';
import { property, scope, slice } from '../support/systemd.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';

const counter = ['sh', '-c', 'n=0; while :; do n=$((n + 1)); echo $n; sleep 0.02; done'];

describe('a restore into a scope', function () {
  this.timeout(300_000);
  const bed = useTestBed();

  before(function () {
    requires(this, 'root', 'systemd');
  });

  async function checkpointed(): Promise<Container> {
    const container = await bed.start({ args: counter, slice });
    await container.waitForOutput(/^3$/m);
    await container.checkpoint();
    return container;
  }

  async function refusal(container: Container): Promise<string> {
    const result = await container.runDetached(container.restoreArgs(container.imagesDirectory()));
    assert.equal(result.exitCode, 1, result.stderr);
    assert.equal(container.hasStateDirectory(), false);
    return lastLine(result.stderr);
  }

  it('is refused while somebody is in one of that name, and takes over one that has failed', async () => {
    const container = await checkpointed();
    const occupy = (...options: string[]): ReturnType<typeof spawn> =>
      spawn('systemd-run', ['--scope', '--slice', slice, '--unit', scope, ...options, 'sleep', '1000'], {
        stdio: 'ignore',
      });
    const other = occupy();
    await waitFor('the other scope', async () => ((await property('ActiveState')) === 'active' ? true : undefined));
    assert.match(
      await refusal(container),
      /cannot restore container "c1" in the scope stasis-c1.scope: there is one already, which is active; end it \(systemctl stop/,
    );
    assert.equal(await property('ActiveState'), 'active');
    assert.ok(isAlive(other.pid!));
    await mustRun('systemctl', ['stop', scope]);
    occupy('--property', 'RuntimeMaxSec=100ms');
    await waitFor('it to fail', async () => ((await property('ActiveState')) === 'failed' ? true : undefined));
    await container.restore();
    await assertCounting(container);
  });

  it("needs no bus where there is systemd's own socket", async () => {
    const container = await checkpointed();
    await container.mustRunDetached(container.restoreArgs(container.imagesDirectory()), stasisProgram, {
      DBUS_SYSTEM_BUS_ADDRESS: 'unix:path=/nonexistent/bus',
    });
    await assertCounting(container);
    assert.equal(await property('ActiveState'), 'active');
  });

  it("is refused in systemd's words, and nothing is left", async () => {
    const container = await checkpointed();
    const config = join(container.bundle, 'config.json');
    const text = readFileSync(config, 'utf8');
    const withProperties = async (properties: Record<string, string>): Promise<string> => {
      const annotations = Object.fromEntries(
        Object.entries(properties).map(([name, value]) => [`org.systemd.property.${name}`, value]),
      );
      writeFileSync(config, JSON.stringify({ ...(JSON.parse(text) as object), annotations }));
      const said = await refusal(container);
      await waitFor('nothing to be left', () => nothingLeft(container));
      return said;
    };
    assert.match(await withProperties({ NoSuchThing: 'true' }), /scope stasis-c1.scope: .*NoSuchThing/);
    assert.match(await withProperties({ After: 'x' }), /annotations\["org.systemd.property.After"\] is no value/);
    assert.match(
      await withProperties({ Requires: "['failing.service']", After: "['failing.service']" }),
      /scope stasis-c1.scope: systemd answers that starting it is "dependency"/,
    );
    writeFileSync(config, text);
    await container.restore();
    await assertCounting(container);
  });

  for (const victim of ['stasis', 'the core', 'both'] as const) {
    it(`leaves nothing or a whole container when ${victim} is killed at any time`, async () => {
      const container = await checkpointed();
      const kills = 10;
      const started = performance.now();
      await restoreAndKill(container, 'nobody', () => pause(10_000));
      const elapsedMs = performance.now() - started;
      await container.must(['delete', '--force', container.id]);
      for (let kill = 0; kill < kills; kill++) {
        await restoreAndKill(container, victim, () => pause((elapsedMs * (kill + 1)) / kills));
        await settle(container);
      }
      // As soon as there is a scope: the placeholder is alone in it.
      const scopeIsThere = async (): Promise<void> =>
        void (await waitFor('the scope', () =>
          cgroupDirectories(container.cgroupPath).length > 0 ? true : undefined,
        ));
      await restoreAndKill(container, victim, scopeIsThere);
      await settle(container);
      await container.restore();
      await assertCounting(container);
    });
  }

  it('leaves nothing when the core dies at any of its steps', async () => {
    const container = await checkpointed();
    const steps = (await mustRun(coreProgram, ['steps', 'execute'])).stdout.trim().split('\n');
    for (const step of steps) {
      const [number = ''] = step.trim().split(/\s+/);
      await container.runDetached(container.restoreArgs(container.imagesDirectory()), stasisProgram, {
        STASIS_FAULT_STEP: number,
      });
      await settle(container);
    }
    await container.restore();
    await assertCounting(container);
  });
});

/** Returns when stasis and its core have gone, or stasis alone if nobody is killed. */
async function restoreAndKill(
  container: Container,
  victim: 'stasis' | 'the core' | 'both' | 'nobody',
  moment: () => Promise<void>,
): Promise<void> {
  const output = openSync(container.outputFile, 'a');
  const errors = openSync(join(container.directory, 'killed.err'), 'a');
  const args = ['--root', container.stateRoot, '--systemd-cgroup'];
  const restore = container.restoreArgs(container.imagesDirectory());
  const child = spawn(stasisProgram, [...args, ...restore], { stdio: ['ignore', output, errors] });
  closeSync(output);
  closeSync(errors);
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  await Promise.race([moment(), exited]);
  if (victim === 'nobody') return await exited;
  // Not the placeholder, which is of the same program.
  const isCore = (pid: number): boolean => readOrEmpty(`/proc/${pid}/cmdline`).split('\0')[1] === 'execute';
  const cores = childrenOf(child.pid!).filter((pid) => programOf(pid) === coreProgram && isCore(pid));
  if (victim !== 'stasis') cores.forEach(killHard);
  if (victim !== 'the core') killHard(child.pid!);
  await exited;
}

function killHard(hostPid: number): void {
  try {
    process.kill(hostPid, 'SIGKILL');
  } catch {
    // It has ended by itself.
  }
}

/** A whole container is deleted again. */
async function settle(container: Container): Promise<void> {
  const whole = (): boolean =>
    existsSync(join(container.stateRoot, container.id, 'state.json')) &&
    processesIn(container.cgroupPath).filter(isAlive).length > 0 &&
    processesOfProgram(coreProgram).length === 0;
  await waitFor(
    'a whole container or nothing',
    async () => (whole() || (await nothingLeft(container)) ? true : undefined),
    {
      seen: () =>
        `processes ${processesIn(container.cgroupPath).join(' ')}, cores ${processesOfProgram(coreProgram).join(' ')}, cgroups ${cgroupDirectories(container.cgroupPath).join(' ')}`,
    },
  );
  if (!whole()) return;
  await assertCounting(container);
  await container.must(['delete', '--force', container.id]);
  await waitFor('the container to go', () => nothingLeft(container));
}

async function nothingLeft(container: Container): Promise<true | undefined> {
  if (cgroupDirectories(container.cgroupPath).length > 0 || container.hasStateDirectory()) return undefined;
  if (processesOfProgram(coreProgram).some(isAlive)) return undefined;
  return (await property('LoadState')) === 'not-found' ? true : undefined;
}
