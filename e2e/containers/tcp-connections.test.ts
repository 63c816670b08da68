// TCP connections to the world outside: numbered data goes both ways between a
// server in a container and a client in another network, through checkpoints
// and restores; every byte arrives once and in order.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { processesIn } from '../support/cgroups.js';
import type { Container } from '../support/container.js';
import { coreProgram, stasisProgram } from '../support/paths.js';
import { isAlive } from '../support/processes.js';
import { lastLine, run } from '../support/run.js';
import type { Spec } from '../support/spec.js';
import { StreamClient } from '../support/stream-client.js';
import { useTestBed } from '../support/test-bed.js';
import { kInnerAddress, kOuterAddress, TwoNetworks } from '../support/two-networks.js';
import { waitFor } from '../support/wait.js';

const kPort = '7777';
const kEstablished = ['--tcp-established'];

describe('TCP connections to outside', function () {
  this.timeout(180_000);
  const bed = useTestBed();
  let networks: TwoNetworks;
  let container: Container;
  let client: StreamClient;

  beforeEach(async () => {
    networks = await TwoNetworks.openFor(bed);
  });

  it('go on while and after a container is checkpointed and left running', async () => {
    await start();
    for (let round = 0; round < 5; round++) {
      await container.checkpoint(`images-${round}`, ['--leave-running', ...kEstablished]);
      await client.goesOn();
    }
    assert.equal(await networks.locks(), 0);
    await client.ends();
  });

  it('are taken over by the restored container, again and again', async () => {
    await start();
    for (let round = 0; round < 3; round++) {
      const name = `images-${round}`;
      await container.checkpoint(name, kEstablished);
      // What the client sends now must neither be taken nor refused.
      assert.equal(await networks.locks(), 1);
      await client.hasStopped();
      await container.restore(name, kEstablished);
      await client.goesOn();
      assert.equal(await networks.locks(), 0);
    }
    await client.ends();
    await container.waitForOutput(/END after/);
  });

  it('need no option where the container has the annotation', async () => {
    await start((spec) => {
      spec.annotations = { 'org.stasis.tcp': 'established' };
    });
    await container.cycle();
    await client.goesOn();
    await client.ends();
  });

  it('are refused without the option, in one sentence that names it, and go on', async () => {
    await start();
    const refused = await container.stasis(container.checkpointArgs(container.imagesDirectory('refused')));
    assert.notEqual(refused.exitCode, 0);
    assert.match(
      lastLine(refused.stderr),
      /fd \d+ of pid .* is a TCP connection \(established\) from 10\.77\.0\.1:7777 to 10\.77\.0\.2:\d+, whose other end is not in the container/,
    );
    assert.match(refused.stderr, /--tcp-established/);
    await client.goesOn();
    const images = await container.checkpoint('images', kEstablished);
    const unwanted = await container.runDetached(container.restoreArgs(images));
    assert.notEqual(unwanted.exitCode, 0);
    assert.match(lastLine(unwanted.stderr), /whose other end is not in the checkpoint.*--tcp-established/);
    await container.restore('images', kEstablished);
    await client.goesOn();
    await client.ends();
  });

  it('are closed on a restore with --tcp-close, and the peer is told', async () => {
    await start();
    await container.checkpoint('images', kEstablished);
    await container.restore('images', ['--tcp-close']);
    await container.waitForOutput(/END after|Broken pipe/, 60_000);
    await client.says(/FAIL .*(reset|ended)/);
    assert.equal(await networks.locks(), 0);
    client = await StreamClient.start(bed, { name: 'second', ...networks.fromOuter, port: kPort });
    await client.ends();
  });

  it('are refused where their address is not, before anything is made', async () => {
    await start();
    const images = await container.checkpoint('images', kEstablished);
    await networks.inside('ip', ['address', 'flush', 'dev', 'cable']);
    const refused = await container.runDetached(container.restoreArgs(images, kEstablished));
    assert.notEqual(refused.exitCode, 0);
    assert.match(
      lastLine(refused.stderr),
      /cannot restore container "c1": making the TCP connection from 10\.77\.0\.1:7777 to 10\.77\.0\.2:\d+: bind: EADDRNOTAVAIL .*--tcp-close/,
    );
    await networks.inside('ip', ['address', 'add', `${kInnerAddress}/24`, 'dev', 'cable']);
    await container.restore('images', kEstablished);
    await client.goesOn();
    await client.ends();
  });

  it('survive the death of the core at every step of a checkpoint', async () => {
    await start();
    for (const step of connectionSteps('capture')) {
      for (const flags of [['--leave-running'], []]) {
        const images = container.imagesDirectory(`images-${step.number}-${flags.length}`);
        const args = ['--root', container.stateRoot, ...container.checkpointArgs(images, [...flags, ...kEstablished])];
        const result = await run(stasisProgram, args, {
          env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', STASIS_FAULT_STEP: String(step.number) },
        });
        const label = `step ${step.number} (${step.name})${flags.join(' ')}`;
        if (result.exitCode === 0) assert.deepEqual(flags, ['--leave-running'], `${label} was not reached`);
        else if (step.name === 'end_announced') {
          // The guard has ended it, and nobody outside has been told.
          await waitFor(`${label}: the container to end`, () =>
            processesIn(container.cgroupPath).some(isAlive) ? undefined : true,
          );
          await waitFor(`${label}: the lock`, async () => ((await networks.locks()) === 1 ? true : undefined));
          await container.must(['delete', '--force', container.id]);
          await container.mustRunDetached(container.restoreArgs(images, kEstablished));
        }
        await client.goesOn(label);
        await waitFor(`${label}: no lock`, async () => ((await networks.locks()) === 0 ? true : undefined));
      }
    }
    await client.ends();
  });

  it('survive the death of the core before the last step of a restore', async () => {
    await start();
    await container.checkpoint('images', kEstablished);
    for (const step of connectionSteps('execute')) {
      if (step.name === 'finish_connections') continue; // the world has been let in
      const failed = await container.runDetached(
        container.restoreArgs(container.imagesDirectory(), kEstablished),
        stasisProgram,
        {
          STASIS_FAULT_STEP: String(step.number),
        },
      );
      assert.notEqual(failed.exitCode, 0, `step ${step.number} (${step.name})`);
      await waitFor('nothing to be left', () => (processesIn(container.cgroupPath).length === 0 ? true : undefined));
    }
    await container.restore('images', kEstablished);
    await client.goesOn();
    await client.ends();
  });

  it('are taken over in a new network namespace, into which hooks bring the network', async () => {
    for (const words of [
      ['link', 'delete', 'cable'],
      ['link', 'add', 'bridge', 'type', 'bridge'],
      ['address', 'add', `${kOuterAddress}/24`, 'dev', 'bridge'],
      ['link', 'set', 'bridge', 'up'],
    ])
      await networks.outside('ip', words);
    container = await bed.start({
      args: ['/targets/tcp_stream', 'server', kPort],
      targets: ['tcp_stream'],
      adjust: (spec) => {
        spec.hooks = {
          createRuntime: [
            {
              path: '/bin/sh',
              args: ['sh', '-c', plugIn, 'sh', networks.enterOuter.join(' '), kInnerAddress],
              env: ['PATH=/usr/sbin:/usr/bin:/sbin:/bin'],
            } as NonNullable<Spec['hooks']>[string][number],
          ],
        };
      },
    });
    await container.waitForOutput(/LISTENING/);
    await connect();
    for (let round = 0; round < 2; round++) {
      await container.cycle(1, kEstablished);
      await client.goesOn();
    }
    await client.ends();
  });

  it('are taken over by a restore that waits for its start', async () => {
    await start();
    await container.checkpoint('images', kEstablished);
    await container.restore('images', ['--prepare', ...kEstablished]);
    await client.hasStopped();
    await container.must(['start', container.id]);
    await client.goesOn();
    await client.ends();
  });

  it('and inside, with unread data and half closed, are as before when the container is left running', async () => {
    container = await bed.start({ args: ['/targets/tcp_loopback'], targets: ['tcp_loopback'] });
    await container.waitForOutput(/READY|FAIL.*/);
    await container.checkpoint('images', ['--leave-running']);
    await container.expectOk();
    const images = readdirSync(container.imagesDirectory()).filter((name) => name.startsWith('tcp-stream-'));
    assert.equal(images.length, 30);
  });

  it('are carried in the network of the host', async () => {
    container = await bed.start({
      args: ['/targets/tcp_stream', 'server', kPort],
      targets: ['tcp_stream'],
      adjust: (spec) => {
        spec.linux.namespaces = spec.linux.namespaces.filter(({ type }) => type !== 'network');
      },
    });
    await container.waitForOutput(/LISTENING/);
    client = await StreamClient.start(bed, { enter: [], address: '127.0.0.1', port: kPort });
    for (let round = 0; round < 2; round++) {
      await container.cycle(1, kEstablished);
      await client.goesOn();
    }
    await client.ends();
  });

  async function start(adjust?: (spec: Spec) => void): Promise<void> {
    container = await bed.start({
      args: ['/targets/tcp_stream', 'server', kPort],
      targets: ['tcp_stream'],
      adjust: (spec) => {
        const network = spec.linux.namespaces.find(({ type }) => type === 'network');
        assert.ok(network);
        network.path = networks.innerPath;
        adjust?.(spec);
      },
    });
    await container.waitForOutput(/LISTENING/);
    await connect();
  }

  async function connect(): Promise<void> {
    client = await StreamClient.start(bed, { ...networks.fromOuter, port: kPort });
    await client.goesOn();
  }
});

/** A cable from a bridge in the outer network to the container, whose state the hook is given; the hardware address stays. */
const plugIn = `
  pid=$(sed 's/.*"pid":[ ]*\\([0-9]*\\).*/\\1/')
  $1 ip link add plug type veth peer name cable netns "$pid" address 02:00:0a:4d:00:01
  $1 ip link set plug master bridge up
  nsenter --net=/proc/$pid/ns/net ip address add "$2/24" dev cable
  nsenter --net=/proc/$pid/ns/net ip link set cable up
`;

interface Step {
  readonly number: number;
  readonly name: string;
}

/** Those that have to do with connections, and what stands around them. */
function connectionSteps(command: 'capture' | 'execute'): Step[] {
  return execFileSync(coreProgram, ['steps', command], { encoding: 'utf8' })
    .trim()
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
    .map(([number, name]) => ({ number: Number(number), name: name ?? '' }))
    .filter(({ name }) => /connection|end_announced|capture_complete|set_registers|^hold$|^kill$/.test(name));
}
