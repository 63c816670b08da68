// A TCP connection goes from CRIU to us and back, while its peer streams.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { requires } from '../support/lanes.js';
import { criuProgram, targetDirectory } from '../support/paths.js';
import { peers } from '../support/peers.js';
import { processState } from '../support/processes.js';
import { StreamClient } from '../support/stream-client.js';
import { useTestBed } from '../support/test-bed.js';
import { TwoNetworks } from '../support/two-networks.js';
import { waitFor } from '../support/wait.js';

const kPort = '7778';

describe('a TCP connection', function () {
  this.timeout(180_000);
  const bed = useTestBed();
  let networks: TwoNetworks;

  beforeEach(async function () {
    requires(this, 'peers');
    networks = await TwoNetworks.openFor(bed);
  });

  it('that CRIU has taken is restored by us, and one of ours by CRIU', async () => {
    const output = join(bed.directory, 'server.out');
    const file = openSync(output, 'a');
    const words = [`--net=${networks.innerPath}`, join(targetDirectory, 'tcp_stream'), 'server', kPort];
    const server = spawn('nsenter', words, { detached: true, stdio: ['ignore', file, file], cwd: bed.directory });
    closeSync(file);
    const pid = server.pid!;
    bed.onClose(async () => {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // It has gone.
      }
      await waitFor('the server to go', () => (processState(pid) === undefined ? true : undefined));
    });
    await waitFor('the server', () => (/LISTENING/.test(readFileSync(output, 'utf8')) ? true : undefined));
    const client = await StreamClient.start(bed, { ...networks.fromOuter, port: kPort });
    await client.goesOn();

    const checkpoint = async (program: string, name: string, ...more: readonly string[]): Promise<void> => {
      const images = join(bed.directory, name);
      mkdirSync(images);
      await networks.inside(program, ['dump', '-t', String(pid), '-D', images, '--tcp-established', ...more]);
      await waitFor('the server to go', () => (processState(pid) === undefined ? true : undefined));
    };
    const restore = async (program: string, name: string): Promise<void> => {
      await networks.inside(program, ['restore', '-D', join(bed.directory, name), '-d', '--tcp-established']);
      await client.goesOn(name);
      assert.equal(await networks.locks(), 0);
    };
    await checkpoint(peers.criu, 'by-criu', '--network-lock', 'nftables');
    assert.equal(await networks.locks(), 1);
    await restore(criuProgram, 'by-criu');
    await checkpoint(criuProgram, 'by-us');
    assert.equal(await networks.locks(), 1);
    await restore(peers.criu, 'by-us');
    await client.ends();
  });
});
