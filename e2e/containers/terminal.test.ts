// A shell on a terminal goes on where it was: modes, size, jobs, and who is
// in the foreground; the other side of the terminal goes to the console socket.
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Console } from '../support/console.js';
import type { Container } from '../support/container.js';
import { OwnTerminal } from '../support/own-terminal.js';
import { criuProgram, stasisProgram } from '../support/paths.js';
import { useTestBed } from '../support/test-bed.js';
import { waitFor } from '../support/wait.js';

describe('a container with a terminal', () => {
  const bed = useTestBed();
  let terminal: Console;

  beforeEach(async () => {
    const scratch = mkdtempSync(join(tmpdir(), 'stasis-tty-'));
    terminal = await Console.open(join(scratch, 'socket'), join(scratch, 'output'));
    bed.onClose(async () => {
      terminal.close();
      rmSync(scratch, { recursive: true });
      return Promise.resolve();
    });
  });

  async function startShell(user = 0): Promise<Container> {
    const container = await bed.prepare({
      args: ['sh'],
      adjust: (spec) => {
        spec.process.terminal = true;
        spec.process.user = { uid: user, gid: user };
        Object.assign(spec.process, { consoleSize: { height: 33, width: 111 } });
        spec.process.env.push('PS1=ready> ');
      },
    });
    await container.must([
      ...['run', '--detach', '--console-socket', terminal.path],
      ...['--bundle', container.bundle, container.id],
    ]);
    await terminal.shows(/ready> /);
    return container;
  }

  /** Types a command; its answer is what stands between marks that are no part of what was typed. */
  let round = 0;
  async function ask(command: string): Promise<string> {
    const from = terminal.output().length;
    round += 1;
    terminal.type(`echo "<"${round}; ${command}; echo "${round}"">"\n`);
    const answer = await terminal.shows(new RegExp(`<${round}\\r?\\n([^]*?)${round}>`), from);
    return answer[1]!.replaceAll('\r', '').trim();
  }

  async function cycle(container: Container, program = stasisProgram, variables = {}): Promise<void> {
    const images = container.imagesDirectory(`images-${(round += 1)}`);
    mkdirSync(`${images}.work`, { recursive: true });
    await container.mustRunDetached(container.checkpointArgs(images), program, variables);
    const from = terminal.output().length;
    await container.mustRunDetached(
      container.restoreArgs(images, ['--console-socket', terminal.path]),
      program,
      variables,
    );
    await terminal.shows(/<console>/, from);
  }

  async function lives(container: Container, again: () => Promise<void>): Promise<void> {
    await ask('kept=yes; stty -ixany intr ^B; sleep 1000 & stty cols 99');
    for (let times = 0; times < 2; times += 1) {
      await again();
      assert.equal(await ask('echo $kept'), 'yes');
      assert.equal(await ask('stty size'), '33 99');
      assert.match(await ask('stty -a'), /intr = \^B/);
      assert.match(await ask('jobs'), /Running\s+sleep 1000/);
      assert.equal(await ask('tty'), '/dev/pts/0');
      assert.equal(await ask('echo seen >/dev/tty'), 'seen', 'it has no controlling terminal');
    }
    // A foreground job of its own group is restored as such: ^B ends it, and the shell goes on.
    const from = terminal.output().length;
    terminal.type('echo started; sleep 2000\n');
    await terminal.shows(/\nstarted/, from);
    await again();
    terminal.type('\x02');
    assert.equal(await ask('echo $kept'), 'yes');
    assert.doesNotMatch(await container.exec(['ps']), /sleep 2000/);
  }

  it('goes on with its shell, modes, size and jobs, twice in a row', async () => {
    const container = await startShell();
    await lives(container, async () => await cycle(container));
  });

  it('goes on with a user who is not root', async () => {
    const container = await startShell(1000);
    await cycle(container);
    assert.equal(await ask('id -u; touch /dev/tty && echo mine'), '1000\nmine');
  });

  it('goes on through an unmodified runc and our criu', async () => {
    const directory = join(bed.directory, 'path');
    mkdirSync(directory);
    symlinkSync(criuProgram, join(directory, 'criu'));
    const container = await startShell();
    await lives(
      container,
      async () => await cycle(container, 'runc', { PATH: `${directory}:/usr/sbin:/usr/bin:/sbin:/bin` }),
    );
  });

  it('refuses a restore that leaves the terminal to nobody', async () => {
    const container = await startShell();
    const images = await container.checkpoint();
    const result = await container.runDetached(container.restoreArgs(images));
    assert.equal(result.exitCode, 1);
    assert.match(result.stderr, /process.terminal is true in config.json, and no --console-socket is given/);
    assert.equal(container.hasStateDirectory(), false);
    const elsewhere = await container.runDetached(
      container.restoreArgs(images, ['--console-socket', '/nowhere/socket']),
    );
    assert.match(elsewhere.stderr, /cannot hand over the console: \/nowhere\/socket/);
    assert.equal(container.hasStateDirectory(), false);
    await container.must(container.restoreArgs(images, ['--console-socket', terminal.path]));
    assert.equal(await ask('echo here'), 'here');
  });

  it('stays in the foreground without --detach: typed, shown, resized, and its exit status is ours', async () => {
    const container = await startShell();
    await ask('kept=yes');
    const images = await container.checkpoint();
    const args = container.restoreArgs(images).filter((word) => word !== '--detach');
    const mine = new OwnTerminal(stasisProgram, ['--root', container.stateRoot, ...args]);
    bed.onClose(async () => Promise.resolve(mine.close()));
    mine.type('echo "<$kept>"\n');
    await mine.shows(/<yes>/);
    mine.type('stty size\n');
    await mine.shows(/^40 120\r$/m);
    mine.enlarge();
    await waitFor('the larger window', async () => {
      const size = (await container.exec(['sh', '-c', 'stty size </dev/console'])).trim();
      return size === '50 130' ? true : undefined;
    });
    // Raw: the container's terminal makes a signal of it, ours does not.
    mine.type('sleep 1000\n');
    await waitFor('sleep in the container', async () =>
      /sleep 1000/.test(await container.exec(['ps'])) ? true : undefined,
    );
    mine.type('\x03');
    mine.type('echo "<after $kept>"\n');
    await mine.shows(/<after yes>/);
    // More than a terminal holds at once.
    mine.type('head -c 200000 /dev/zero | tr "\\0" x; echo; exit 5\n');
    assert.equal(await mine.ended(), 5);
    assert.match(mine.output(), /<modes as before>/);
    assert.equal(/x{200000}/.test(mine.output()), true, 'output is missing');
    assert.equal(container.hasStateDirectory(), false);
  });

  it('refuses a console socket in the foreground', async () => {
    const container = await startShell();
    const images = await container.checkpoint();
    const args = container.restoreArgs(images, ['--console-socket', terminal.path]);
    const result = await container.runDetached(args.filter((word) => word !== '--detach'));
    assert.equal(result.exitCode, 1);
    assert.match(
      result.stderr,
      /--console-socket is given without --detach, and in the foreground the terminal is ours/,
    );
    await container.restore('images', ['--console-socket', terminal.path]);
    assert.equal(await ask('echo fine'), 'fine');
  });
});
