// The command lines of CRI-O, word for word, with its environment and working
// directory: it freezes a container before it has it checkpointed. And what
// managers ask a runtime before they use it.
import assert from 'node:assert/strict';
import { closeSync, mkdirSync, openSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Container } from '../support/container.js';
import { requires } from '../support/lanes.js';
import { stasisProgram } from '../support/paths.js';
import { mustRun, run, type CommandResult } from '../support/run.js';
import { useTestBed } from '../support/test-bed.js';

const counter = ['sh', '-c', 'n=0; while :; do n=$((n + 1)); echo $n; sleep 0.02; done'];
const search = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
const environment = { PATH: search, CRI_O_EXTERNAL: 'yes' };

describe("CRI-O's command lines", () => {
  const bed = useTestBed();

  /** `--root R`, then the words; as CRI-O calls it for everything but a restore. */
  async function command(container: Container, words: readonly string[]): Promise<string> {
    const env = environment;
    return (await mustRun(stasisProgram, ['--root', container.stateRoot, ...words], { env, cwd: '/' })).stdout;
  }

  async function status(container: Container): Promise<string> {
    return (JSON.parse(await command(container, ['state', container.id])) as { status: string }).status;
  }

  async function checkpoint(container: Container, user: string): Promise<void> {
    const { id } = container;
    await command(container, ['pause', id]);
    assert.match((await mustRun(stasisProgram, ['checkpoint', '--help'], { env: environment, cwd: '/' })).stdout, /./);
    const images = join(user, 'checkpoint');
    const paths = ['--image-path', images, '--work-path', user];
    const log = prepareLog(join(user, 'dump.log'));
    await command(container, ['checkpoint', '--file-locks', ...paths, '--leave-running', id]);
    log.assertUsed();
    // CRI-O resumes what says that it is paused, and nothing else.
    assert.equal(await status(container), 'paused');
    await command(container, ['resume', id]);
    assert.equal(await status(container), 'running');
    assert.ok(readdirSync(images, { withFileTypes: true }).every((entry) => entry.isFile()));
    assert.ok(readdirSync(images).includes('inventory.img'));
    assert.ok(!readdirSync(images).includes('core-99.img'));
    for (const name of ['dump.log', 'stats-dump']) assert.ok(readdirSync(user).includes(name), `${name} is missing`);
  }

  async function restore(container: Container, user: string): Promise<CommandResult> {
    const { bundle, id } = container;
    // conmon gives it the pipes of the container's log; here it is the file that takes the container's output.
    const output = openSync(container.outputFile, 'a');
    const log = prepareLog(join(bundle, 'restore.log'));
    try {
      const words = ['--bundle', bundle, '--pid-file', join(bundle, 'pidfile'), '--detach'];
      const paths = ['--image-path', join(user, 'checkpoint'), '--work-path', bundle];
      const result = await run(stasisProgram, [`--root=${container.stateRoot}`, 'restore', ...words, ...paths, id], {
        cwd: bundle,
        env: { ...environment, _OCI_SYNCPIPE: '3', _OCI_STARTPIPE: '4' },
        stdout: output,
        stderr: output,
      });
      log.assertUsed();
      return result;
    } finally {
      closeSync(output);
    }
  }

  it('checkpoint what they have frozen, leave it frozen, and restore it', async function () {
    requires(this, 'root', 'built');
    const container = await bed.start({ args: counter });
    const user = join(bed.directory, 'userdata');
    mkdirSync(user);
    // runc makes it like this; root needs no right to search.
    mkdirSync(join(user, 'checkpoint'), { mode: 0o600 });
    writeFileSync(join(user, 'checkpoint/core-99.img'), 'of an older checkpoint');
    await container.waitForOutput(/^3$/m);
    for (let round = 0; round < 2; round += 1) {
      await checkpoint(container, user);
      const before = lines(container).length;
      await container.waitForOutput(new RegExp(`^${before + 2}$`, 'm'));
      await command(container, ['delete', '--force', container.id]);
      const last = lines(container).at(-1)!;
      const restored = await restore(container, user);
      assert.equal(restored.exitCode, 0, container.output());
      assert.equal(await status(container), 'running');
      assert.equal(Number(readFileSync(join(container.bundle, 'pidfile'), 'utf8')), await container.initPid());
      // What it had counted after its checkpoint is counted again, and then more.
      await container.waitForOutput(new RegExp(`^${last + 3}$`, 'm'));
      assert.ok(readdirSync(container.bundle).includes('restore.log'));
    }
  });

  it('say that it is not running in the words that CRI-O looks for', async function () {
    requires(this, 'root', 'built');
    const container = await bed.start({ args: ['sleep', '1000'] });
    const pid = await container.initPid();
    await command(container, ['kill', container.id, '9']);
    await container.waitForExit(pid);
    const paths = ['--image-path', join(bed.directory, 'images'), '--work-path', bed.directory];
    const result = await run(
      stasisProgram,
      ['--root', container.stateRoot, 'checkpoint', '--file-locks', ...paths, '--leave-running', container.id],
      { env: environment, cwd: '/' },
    );
    assert.equal(result.exitCode, 1);
    assert.match(result.stderr.trimEnd(), /^[^\n]*container not running[^\n]*$/);
  });
});

describe('what managers ask a runtime', () => {
  const ask = async (...words: string[]): Promise<string> =>
    (await mustRun(stasisProgram, words, { env: { PATH: search }, cwd: '/' })).stdout;

  it('features: as the base runtime has them, and that checkpoint and restore are ours', async function () {
    requires(this, 'root', 'built');
    interface Features {
      readonly annotations: Record<string, string>;
    }
    const ours = JSON.parse(await ask('features')) as Features;
    const base = JSON.parse((await mustRun('runc', ['features'])).stdout) as Features;
    const own = Object.entries(ours.annotations).filter(([name]) => name.startsWith('org.stasis.'));
    const others = Object.entries(ours.annotations).filter(([name]) => !name.startsWith('org.stasis.'));
    assert.deepEqual({ ...ours, annotations: Object.fromEntries(others) }, base);
    const { 'org.stasis.version': version, 'org.stasis.commit': _commit, ...rest } = Object.fromEntries(own);
    assert.match((await ask('--version')).split('\n')[0]!, new RegExp(` ${version}$`));
    assert.deepEqual(rest, {
      'org.stasis.checkpoint.enabled': 'true',
      'org.stasis.restore.enabled': 'true',
      'org.stasis.images': 'criu',
    });
  });

  it('--version: in the form of runc, whatever else it says', async function () {
    requires(this, 'root', 'built');
    const text = await ask('--version');
    assert.match(text, /^stasis version \S+\ncommit: \S+\nspec: \d\S+\nbase: runc \S+\nnode: \S+$/);
    // dockerd takes the last line that has the word for the version.
    assert.equal(text.match(/version/g)?.length, 1);
    const base = (await mustRun('runc', ['--version'])).stdout;
    assert.equal(/^spec: .*$/m.exec(text)?.[0], /^spec: .*$/m.exec(base)?.[0]);
  });

  it('--version answers without a base runtime, and features says which one is missing', async function () {
    requires(this, 'root', 'built');
    const env = { PATH: search, STASIS_RUNTIME: '/nowhere/runc' };
    const version = await run(stasisProgram, ['--version'], { env, cwd: '/' });
    assert.equal(version.exitCode, 0);
    assert.match(version.stdout, /^stasis version /);
    const features = await run(stasisProgram, ['features'], { env, cwd: '/' });
    assert.equal(features.exitCode, 1);
    assert.match(features.stderr, /^cannot find the base runtime: STASIS_RUNTIME names "\/nowhere\/runc"/m);
  });
});

/** Managers make the logs themselves, with a security label: what has it must stay. */
function prepareLog(path: string): { assertUsed(): void } {
  writeFileSync(path, '', { mode: 0o600 });
  const before = statSync(path).ino;
  return {
    assertUsed: () => {
      const { ino, mode, size } = statSync(path);
      assert.deepEqual([ino, mode & 0o777], [before, 0o600], `${path} is another file`);
      assert.ok(size > 0, `${path} is empty`);
    },
  };
}

function lines(container: Container): number[] {
  return container.output().split('\n').filter(Boolean).map(Number);
}
