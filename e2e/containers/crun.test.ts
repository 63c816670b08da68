// crun as the base runtime: it makes the container, we checkpoint and restore
// it, and crun's own verbs work on what we restored.
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isFrozen, processesIn } from '../support/cgroups.js';
import { Console } from '../support/console.js';
import type { Container } from '../support/container.js';
import { requires } from '../support/lanes.js';
import { stasisProgram } from '../support/paths.js';
import { peers } from '../support/peers.js';
import { isAlive } from '../support/processes.js';
import { lastLine, run } from '../support/run.js';
import type { Spec } from '../support/spec.js';
import { useTestBed } from '../support/test-bed.js';
import { assertCounting, assertWithoutGap } from '../support/counting.js';

const counter = ['sh', '-c', 'trap "exit 7" TERM; n=0; while :; do n=$((n + 1)); echo $n; sleep 0.02; done'];

describe('crun as the base runtime', () => {
  const bed = useTestBed();

  // crun itself takes other people's cgroups for its own on v1.
  before(function () {
    requires(this, 'cgroup-v2', 'peers');
  });

  async function start(adjust?: (spec: Spec) => void): Promise<Container> {
    const container = await bed.start({ args: counter, base: peers.crun, ...(adjust ? { adjust } : {}) });
    await container.waitForOutput(/^3$/m);
    return container;
  }

  async function must(container: Container, ...args: string[]): Promise<string> {
    const result = await container.runc(args);
    assert.equal(result.exitCode, 0, `${args.join(' ')}: ${result.stderr}`);
    return result.stdout;
  }

  it('counts on after each of three cycles', async () => {
    const container = await start();
    await container.cycle(3);
    await assertCounting(container);
    assertWithoutGap(container.output().trimEnd().split('\n').map(Number));
  });

  it('leaves nothing of a container that was checkpointed', async () => {
    const container = await start();
    const pid = await container.initPid();
    await container.checkpoint();
    assert.equal(isAlive(pid), false);
    assert.equal(container.hasStateDirectory(), false);
    assert.deepEqual(processesIn(container.cgroupPath), []);
  });

  it('goes on with --leave-running', async () => {
    const container = await start();
    await container.checkpoint('images', ['--leave-running']);
    container.assertUntouched();
    await assertCounting(container);
    await must(container, 'delete', '--force', container.id);
    await container.restore();
    await assertCounting(container);
  });

  it('serves state, list, ps, exec, pause, resume, kill and delete of crun after a restore', async () => {
    const container = await start((spec) => void (spec.annotations = { 'org.example.note': 'kept' }));
    await container.cycle();
    const pid = await container.initPid();
    const state = JSON.parse(await must(container, 'state', container.id)) as Record<string, unknown>;
    assert.deepEqual(
      [state['status'], state['pid'], state['bundle'], state['annotations']],
      ['running', pid, container.bundle, { 'org.example.note': 'kept' }],
    );
    assert.match(await must(container, 'list'), new RegExp(`^${container.id} +${pid} +running`, 'm'));
    assert.match(await must(container, 'ps', container.id), new RegExp(`^${pid}$`, 'm'));
    assert.equal((await must(container, 'exec', container.id, 'cat', '/proc/1/comm')).trim(), 'sh');
    await must(container, 'pause', container.id);
    assert.equal(isFrozen(container.cgroupPath), true);
    assert.equal((await container.state()).status, 'paused');
    await container.checkpoint('paused', ['--leave-running']);
    assert.equal((await container.state()).status, 'paused');
    await must(container, 'resume', container.id);
    await assertCounting(container);
    await must(container, 'kill', container.id, 'TERM');
    await container.waitForExit(pid);
    assert.equal((await container.state()).status, 'stopped');
    await must(container, 'delete', container.id);
    assert.equal(container.hasStateDirectory(), false);
    assert.deepEqual(processesIn(container.cgroupPath), []);
  });

  it('keeps masked directories empty, and can be checkpointed again where they are', async () => {
    const container = await start();
    await container.cycle(2);
    const init = await container.initPid();
    const mounts = readFileSync(`/proc/${init}/mountinfo`, 'utf8');
    assert.match(mounts, /\.empty-directory \/sys\/firmware ro/);
    assert.equal(await container.exec(['ls', '-A', '/sys/firmware']), '');
  });

  it('filters what "crun exec" starts after a restore', async () => {
    const container = await start((spec) => {
      spec.linux.seccomp = {
        defaultAction: 'SCMP_ACT_ALLOW',
        architectures: ['SCMP_ARCH_X86_64'],
        syscalls: [{ names: ['mkdir', 'mkdirat'], action: 'SCMP_ACT_ERRNO', errnoRet: 38 }],
      };
    });
    const before = readFileSync(join(container.stateRoot, container.id, 'seccomp.bpf'));
    await container.cycle();
    assert.deepEqual(readFileSync(join(container.stateRoot, container.id, 'seccomp.bpf')), before);
    const result = await container.runc(['exec', container.id, 'mkdir', '/tmp/made']);
    assert.match(result.stderr, /Function not implemented/);
    assert.match(await must(container, 'exec', container.id, 'grep', 'Seccomp:', '/proc/self/status'), /2/);
  });

  it('hands a terminal over', async () => {
    const scratch = mkdtempSync(join(tmpdir(), 'stasis-tty-'));
    const terminal = await Console.open(join(scratch, 'socket'), join(scratch, 'output'));
    bed.onClose(async () => {
      terminal.close();
      rmSync(scratch, { recursive: true });
      return Promise.resolve();
    });
    const container = await bed.prepare({
      args: ['sh'],
      base: peers.crun,
      adjust: (spec) => {
        spec.process.terminal = true;
        spec.process.env.push('PS1=ready> ');
      },
    });
    const console = ['--console-socket', terminal.path];
    await container.must(['run', '--detach', ...console, '--bundle', container.bundle, container.id]);
    await terminal.shows(/ready> /);
    terminal.type('kept=yes\n');
    await container.checkpoint();
    const from = terminal.output().length;
    await container.restore('images', console);
    terminal.type('echo "<$kept>"\n');
    await terminal.shows(/<yes>/, from);
  });

  it('is found by its own default root, also through XDG_RUNTIME_DIR', async () => {
    const runtime = mkdtempSync(join(tmpdir(), 'stasis-run-'));
    bed.onClose(async () => {
      rmSync(runtime, { recursive: true });
      return Promise.resolve();
    });
    const container = await bed.prepare({ args: ['sleep', '1000'], base: peers.crun });
    const env = { STASIS_RUNTIME: peers.crun, XDG_RUNTIME_DIR: runtime, PATH: '/usr/sbin:/usr/bin:/sbin:/bin' };
    const stasis = async (...args: string[]): Promise<string> => {
      // A file as output: a pipe would be the container's, too.
      const command = ['-c', '"$@" >"$0" 2>&1 </dev/null', join(bed.directory, 'said'), stasisProgram, ...args];
      const result = await run('sh', command, { env });
      const said = readFileSync(join(bed.directory, 'said'), 'utf8');
      assert.equal(result.exitCode, 0, said);
      return said;
    };
    const images = join(bed.directory, 'images');
    mkdirSync(images);
    await stasis('run', '--detach', '--bundle', container.bundle, container.id);
    await stasis('checkpoint', '--image-path', images, container.id);
    assert.equal(existsSync(join(runtime, 'crun', container.id)), false);
    await stasis('restore', '--detach', '--bundle', container.bundle, '--image-path', images, container.id);
    assert.equal(existsSync(join(runtime, 'crun', container.id, 'status')), true);
    assert.match(await stasis('state', container.id), /"status": "running"/);
    await stasis('delete', '--force', container.id);
    assert.deepEqual(
      readdirSync(join(runtime, 'crun')).filter((name) => !name.startsWith('.')),
      [],
    );
  });

  for (const [from, to] of [
    ['crun', 'runc'],
    ['runc', 'crun'],
  ] as const) {
    it(`restores under ${to} what was checkpointed under ${from}`, async () => {
      const base = { crun: peers.crun, runc: peers.runc };
      const first = await bed.start({ args: counter, base: base[from] });
      await first.waitForOutput(/^3$/m);
      const images = await first.checkpoint();
      const second = await bed.prepare({ args: counter, base: base[to], id: 'c2' });
      await second.mustRunDetached(second.restoreArgs(images));
      await assertCounting(second);
      assert.match(await must(second, 'state', second.id), /"status": "running"/);
      assert.equal((await must(second, 'exec', second.id, 'cat', '/proc/1/comm')).trim(), 'sh');
      await second.cycle();
      await assertCounting(second);
    });
  }

  it('says which field of a spoiled status file is wrong, and leaves the container alone', async () => {
    const container = await start();
    const path = join(container.stateRoot, container.id, 'status');
    const text = readFileSync(path, 'utf8');
    writeFileSync(path, text.replace(/"pid": \d+/, '"pid": "many"'));
    const result = await container.stasis(['checkpoint', '--work-path', bed.directory, container.id]);
    writeFileSync(path, text);
    assert.equal(result.exitCode, 1);
    assert.equal(
      lastLine(result.stderr),
      `cannot read the state of container "${container.id}": pid must be an integer, is a string`,
    );
    container.assertUntouched();
  });
});

describe('crun as the base runtime on cgroup v1', () => {
  const bed = useTestBed();

  it('is refused before anything is made', async function () {
    requires(this, 'cgroup-v1', 'peers');
    const first = await bed.start({ args: counter });
    await first.waitForOutput(/^3$/m);
    const images = await first.checkpoint();
    const second = await bed.prepare({ args: counter, base: peers.crun, id: 'c2' });
    const result = await second.runDetached(second.restoreArgs(images));
    assert.equal(result.exitCode, 1);
    assert.match(lastLine(result.stderr), /^cannot restore container "c2": crun as the base runtime needs cgroup v2/);
    assert.equal(second.hasStateDirectory(), false);
  });
});
