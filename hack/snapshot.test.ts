// The snapshots that programs start from hold their functions compiled, and
// run on another kind of processor. Needs the built programs.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buildDirectory, stasisProgram } from '../e2e/support/paths.js';

const library = join(buildDirectory, 'lib/stasis');

function start(program: string, flags: readonly string[], words: readonly string[]): string {
  const snapshot = ['--no-rehash-snapshot', '--snapshot-blob', join(library, `${program}.blob`)];
  return execFileSync(join(library, 'node'), [...flags, ...snapshot, program, ...words], { encoding: 'utf8' });
}

describe('the snapshots of the programs', function () {
  this.timeout(60_000);
  let directory = '';

  before(() => (directory = mkdtempSync(join(tmpdir(), 'stasis-snapshot-'))));
  after(() => rmSync(directory, { recursive: true, force: true }));

  it('leaves out of the environment of base runtimes what is for the start of node', () => {
    const runtime = join(directory, 'runc');
    writeFileSync(runtime, '#!/bin/sh\necho "runc version 1.${GLIBC_TUNABLES-0}"\n', { mode: 0o755 });
    const version = (tunables: Readonly<Record<string, string>>): string =>
      execFileSync(stasisProgram, ['--version'], { env: { STASIS_RUNTIME: runtime, ...tunables }, encoding: 'utf8' });
    assert.match(version({}), /^base: runc 1\.0$/m);
    assert.match(version({ GLIBC_TUNABLES: 'glibc.malloc.check=0' }), /^base: runc 1\.glibc\.malloc\.check=0$/m);
  });

  it('look for our other files beside the node that starts them, not beside the one that made them', () => {
    const copy = join(directory, 'lib/stasis');
    mkdirSync(copy, { recursive: true });
    mkdirSync(join(directory, 'state/held'), { recursive: true });
    for (const name of ['node', 'stasis.blob']) copyFileSync(join(library, name), join(copy, name));
    const { status, stderr } = spawnSync(
      join(copy, 'node'),
      [
        '--no-rehash-snapshot',
        '--snapshot-blob',
        join(copy, 'stasis.blob'),
        'stasis',
        ...['--root', join(directory, 'state'), 'checkpoint', 'held'],
      ],
      { encoding: 'utf8' },
    );
    assert.equal(status, 1);
    assert.ok(stderr.includes(`the addon ${join(copy, 'stasis.node')} cannot be loaded`), stderr);
  });

  it('have the texts of --help in a file beside them, and the bundle finds it, too', () => {
    const words = ['checkpoint', '--help'];
    const fromBundle = execFileSync(join(library, 'node'), [join(library, 'stasis.cjs'), ...words], {
      encoding: 'utf8',
    });
    assert.match(fromBundle, /--leave-running +let the container run on/);
    assert.equal(start('stasis', [], words), fromBundle);
    assert.ok(!readFileSync(join(library, 'stasis.cjs'), 'latin1').includes('yargs'));
  });

  for (const [program, words] of [
    ['stasis', ['features']],
    ['criu', ['--version']],
  ] as const) {
    it(`${program}: compiles nothing of its own when it starts`, () => {
      const log = join(directory, `${program}.log`);
      start(program, ['--log-function-events', '--no-logfile-per-isolate', `--logfile=${log}`], words);
      const events = readFileSync(log, 'utf8')
        .split('\n')
        .map((line) => line.split(','));
      const ours = events.find(([event, , name]) => event === 'script-details' && name?.endsWith(`${program}.cjs`));
      assert.ok(ours, 'the log names the script');
      const ran = events.filter(([event, what]) => event === 'function' && what === 'first-execution');
      assert.ok(ran.length > 0, 'the log tells of functions');
      const compiled = events.filter(
        ([event, what, script]) => event === 'function' && what === 'interpreter' && script === ours[1],
      );
      assert.deepEqual(compiled, []);
    });

    it(`${program}: starts where the processor has none of the newer instructions`, () => {
      const without = ['avx', 'avx2', 'sse4-1', 'sse4-2', 'bmi1', 'bmi2', 'popcnt'].map(
        (name) => `--no-enable-${name}`,
      );
      assert.equal(start(program, without, words), start(program, [], words));
    });
  }
});
