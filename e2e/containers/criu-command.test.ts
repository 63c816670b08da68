// CRIU's command line: process trees without a container around them, as
// scripts that were written for criu checkpoint and restore them.
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { requires } from '../support/lanes.js';
import { criuProgram } from '../support/paths.js';
import { isAlive } from '../support/processes.js';
import { mustRun, run, type CommandResult } from '../support/run.js';
import { useTestBed } from '../support/test-bed.js';
import { Tree } from '../support/tree.js';
import { assertWithoutGap } from '../support/counting.js';

describe("CRIU's command line", () => {
  const bed = useTestBed();

  it('makes pre-dumps and a dump that leaves pages to them, and restores the tree', async function () {
    requires(this, 'root', 'built');
    const tree = await Tree.start(bed);
    const { pid } = tree;
    const one = images('one');
    await mustRun(criuProgram, ['pre-dump', '-t', String(pid), '-D', one, '-v4', '-o', 'pre.log']);
    assert.match(readFileSync(join(one, 'pre.log'), 'utf8'), /frozen/);
    assert.equal(isAlive(pid), true);
    const two = images('two');
    const dump = ['dump', '--tree', String(pid), '--images-dir', two, '--prev-images-dir', '../one', '-vvvv'];
    await mustRun(criuProgram, dump);
    assert.equal(readlinkSync(join(two, 'parent')), '../one');
    await tree.isGone();

    const taken = join(two, 'taken');
    writeFileSync(taken, '');
    const refused = await run(criuProgram, ['restore', '-D', two, '-d', '--pidfile', taken]);
    assert.equal(refused.exitCode, 1);
    assert.match(lastLine(refused), /cannot write the pid to .*taken/);
    assert.equal(isAlive(pid), false);

    await mustRun(criuProgram, ['restore', '-D', two, '-d', '-o', 'restore-again.log', '--pidfile', 'pid']);
    assert.equal(readFileSync(join(two, 'pid'), 'utf8'), String(pid));
    assert.equal(existsSync(join(two, 'restore-again.log')), true);
    await tree.countsOn();
    assertWithoutGap(tree.output().trimEnd().split('\n').map(Number));
  });

  it('keeps note of changes when it is asked to, so that a later dump writes little', async function () {
    requires(this, 'root', 'built');
    const tree = await Tree.start(bed);
    const pid = String(tree.pid);
    await mustRun(criuProgram, ['dump', '-t', pid, '-D', images('one'), '-R', '--track-mem']);
    await mustRun(criuProgram, ['dump', '-t', pid, '-D', images('two'), '-R', '--prev-images-dir', '../one']);
    const inParent = (await mustRun(criuProgram, ['check', '--feature', 'mem_dirty_track'])).stdout;
    assert.equal(inParent, 'Looks good.');
    const sizeOf = (name: string): number => readFileSync(join(images(name), 'pages-1.img')).length;
    assert.ok(sizeOf('two') < sizeOf('one') / 2, `${sizeOf('two')} of ${sizeOf('one')} bytes were written again`);
    await tree.countsOn();
  });

  it('reads configuration files, each of which counts less than what comes after it', async function () {
    requires(this, 'root', 'built');
    const tree = await Tree.start(bed, { ownSession: false });
    const at = ['-D', images('images')];
    await mustRun(criuProgram, ['dump', '-t', String(tree.pid), ...at]);
    await tree.isGone();
    mkdirSync(join(bed.directory, '.criu'));
    const [own, other] = [join(bed.directory, '.criu/default.conf'), join(bed.directory, 'other.conf')];
    const restore = async (words: readonly string[], file = ''): Promise<CommandResult> =>
      await run(criuProgram, ['restore', '-d', ...at, ...words], {
        env: { PATH: process.env['PATH'] ?? '', HOME: bed.directory, CRIU_CONFIG_FILE: file },
      });
    writeFileSync(own, 'shell-job\n');
    writeFileSync(other, 'no-shell-job\n');
    for (const refused of [
      await restore(['--no-default-config']),
      await restore(['--config', other]),
      await restore(['--no-shell-job']),
      await restore([], other),
    ]) {
      assert.equal(refused.exitCode, 1);
      assert.match(lastLine(refused), /session/);
    }
    const restored = await restore([]);
    assert.equal(restored.exitCode, 0, restored.stderr);
    await tree.countsOn();
  });

  it('says in one sentence what it cannot do, and the tree runs on', async function () {
    requires(this, 'root', 'built');
    const tree = await Tree.start(bed);
    const pid = String(tree.pid);
    const refused = async (args: readonly string[], sentence: RegExp): Promise<void> => {
      const result = await run(criuProgram, [...args, '-D', images('none')]);
      assert.equal(result.exitCode, 1);
      assert.match(lastLine(result), sentence);
    };
    await refused(['dump', '-t', pid, '--lazy-pages'], /cannot use lazy_pages: /);
    await refused(['dump', '-t', pid, '--page-server', '--leave-running'], /cannot use ps: serving pages/);
    await refused(['dump', '-t', pid, '--action-script', '/bin/true'], /cannot use --action-script: /);
    await refused(['dump', '-t', '4194304'], /cannot checkpoint pid 4194304: there is no such process/);
    await refused(['dedup'], /cannot dedup: this action is not built yet/);
    await refused(['check', '--feature', 'flying'], /cannot check flying: no such feature is known here/);
    await tree.countsOn();
  });

  function images(name: string): string {
    const directory = join(bed.directory, name);
    mkdirSync(directory, { recursive: true });
    return directory;
  }
});

const lastLine = ({ stderr }: CommandResult): string => stderr.trimEnd().split('\n').at(-1) ?? '';
