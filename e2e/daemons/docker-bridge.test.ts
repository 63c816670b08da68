// docker with the network that it gives to containers unless told otherwise: a
// bridge, and ports of the host that lead to it. docker itself does not start such
// a container from a checkpoint; its runtime does.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { openFor } from '../support/open-manager.js';
import { Docker } from '../support/docker.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';

/** Serves a number that grows; `address`: where it listens. The file is in a tmpfs, and so of the moment of the checkpoint. */
const server = (address: string): string =>
  'n=0; while :; do n=$((n + 1)); echo $n >/www/.count; mv /www/.count /www/count; sleep 0.02; done & ' +
  `exec httpd -f -p ${address} -h /www`;

describe('docker with a bridge', () => {
  const bed = useTestBed();
  let docker: Docker;

  beforeEach(async function () {
    docker = await openFor(this, bed, ['daemons'], () => Docker.open({ bridge: true }));
  });

  const warm = (): string => join(docker.directory, 'saved/warm');

  async function run(name: string, script: string, ...options: readonly string[]): Promise<void> {
    await docker.must('run', '--detach', '--name', name, '--tmpfs', '/www', ...options, 'box', 'sh', '-c', script);
  }

  const address = async (name: string): Promise<string> =>
    await docker.inspect(name, '{{.NetworkSettings.Networks.bridge.IPAddress}}');

  /** Waits until the server there has counted on, and returns how far. */
  async function countsOn(url: string): Promise<number> {
    let said = '';
    const ask = async (least: number): Promise<number> =>
      await waitFor(
        `${url} to serve ${least}`,
        async () => {
          const { exitCode, stdout, stderr } = await docker.fetch(url);
          said = `${stdout}${stderr}`;
          return exitCode === 0 && Number(stdout) >= least ? Number(stdout) : undefined;
        },
        { seen: () => said },
      );
    return await ask((await ask(1)) + 1);
  }

  /** Checkpoints and ends it. */
  async function checkpoint(name: string, ...words: readonly string[]): Promise<void> {
    await docker.must('checkpoint', 'create', ...words);
    await waitFor(`${name} to end`, async () =>
      (await docker.inspect(name, '{{.State.Status}}')) === 'exited' ? true : undefined,
    );
    await docker.forgetCheckpoints();
  }

  it('checkpoints a container, which keeps its address and its published port', async () => {
    await run('web', server('80'), '--publish', '8080:80');
    const url = `${await address('web')}:80/count`;
    const before = await countsOn(url);
    await docker.must('checkpoint', 'create', '--leave-running', 'web', 'one');
    assert.ok((await countsOn(url)) > before);
    assert.ok((await countsOn('127.0.0.1:8080/count')) > before);
    await checkpoint('web', 'web', 'two');
    // Should docker learn it: docs/managers.md says that it cannot.
    const { exitCode, stderr } = await docker.run('start', '--checkpoint', 'two', 'web');
    assert.notEqual(exitCode, 0);
    assert.match(stderr, /^Error response from daemon: [^\n]*bind-mount \/proc\/0\/ns\/net/);
  });

  it('starts a container from its checkpoint by an annotation, at another address', async () => {
    await run('web', server('80'), '--publish', '8080:80', '--annotation', `org.stasis.restore=${warm()}`);
    const first = await address('web');
    const reached = await countsOn('127.0.0.1:8080/count');
    await checkpoint('web', '--checkpoint-dir', join(warm(), '..'), 'web', 'warm');
    // Has the address that is free now.
    await run('other', 'exec sleep 1000000');
    for (const round of ['first', 'second']) {
      await docker.must('start', 'web');
      assert.notEqual(await address('web'), first);
      assert.ok((await countsOn(`${await address('web')}:80/count`)) > reached, round);
      assert.ok((await countsOn('127.0.0.1:8080/count')) > reached, round);
      assert.match(await docker.must('exec', 'web', 'netstat', '-ltn'), /:80 .*LISTEN/);
      await docker.must('stop', '--time', '0', 'web');
    }
  });

  it('starts a container from its checkpoint in the network namespace of another', async () => {
    await run('net', 'exec sleep 1000000', '--publish', '8080:80');
    // Its address is there when the container comes back.
    await run('web', server('$(hostname -i):80'), '--network', 'container:net');
    for (const name of ['one', 'two']) {
      const reached = await countsOn('127.0.0.1:8080/count');
      await checkpoint('web', 'web', name);
      await docker.must('start', '--checkpoint', name, 'web');
      assert.ok((await countsOn(`${await address('net')}:80/count`)) > reached);
      assert.ok((await countsOn('127.0.0.1:8080/count')) > reached);
    }
  });

  it('says in one sentence that there are connections, and the container runs on with them', async () => {
    await run('web', server('80'));
    const url = `${await address('web')}:80/count`;
    await countsOn(url);
    await run('client', `sleep 1000000 | nc ${await address('web')} 80`);
    await waitFor('a connection', async () =>
      /:80 .*ESTABLISHED/.test(await docker.must('exec', 'web', 'netstat', '-tn')) ? true : undefined,
    );
    const { exitCode, stderr } = await docker.run('checkpoint', 'create', 'web', 'one');
    assert.notEqual(exitCode, 0);
    assert.match(
      stderr,
      /^Error response from daemon: [^\n]*cannot checkpoint: fd \d+ of pid \d+ [^\n]* is a TCP connection \(established\)[^\n]*; give --tcp-established, or the annotation org\.stasis\.tcp [^\n]*\n?$/,
    );
    await countsOn(url);
    assert.match(await docker.must('exec', 'web', 'netstat', '-tn'), /:80 .*ESTABLISHED/);
  });

  it('says in one sentence that a socket listens on an address that the new network does not have', async () => {
    await run('web', server('$(hostname -i):80'), '--annotation', `org.stasis.restore=${warm()}`);
    await countsOn(`${await address('web')}:80/count`);
    await checkpoint('web', '--checkpoint-dir', join(warm(), '..'), 'web', 'warm');
    const { exitCode, stderr } = await docker.run('start', 'web');
    assert.notEqual(exitCode, 0);
    assert.match(
      stderr,
      /^Error response from daemon: [^\n]*cannot restore container[^\n]*listening on 172\.17\.0\.2:80[^\n]*; restore into a network that has the address[^\n]*\n/,
    );
  });
});
