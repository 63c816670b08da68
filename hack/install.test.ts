// What hack/install makes besides the runtime: links under the names that
// managers look for, man pages, shell completion. Needs the built programs.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, realpathSync, rmSync, statSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const install = fileURLToPath(new URL('install.js', import.meta.url));

describe('hack/install', function () {
  this.timeout(60_000);
  let prefix = '';

  before(() => {
    prefix = realpathSync(mkdtempSync(join(tmpdir(), 'stasis-prefix-')));
    execFileSync(process.execPath, [install, '--prefix', prefix], { encoding: 'utf8' });
  });
  after(() => rmSync(prefix, { recursive: true, force: true }));

  const output = (program: string, ...words: string[]): string =>
    execFileSync(join(prefix, program), words, { env: {}, cwd: '/', encoding: 'utf8' });

  it('makes links under the names that managers know, which are stasis wherever the prefix is', () => {
    for (const name of ['runc', 'crun']) {
      const path = `lib/stasis/runtimes/${name}`;
      assert.equal(realpathSync(join(prefix, path)), join(prefix, 'bin/stasis'));
      assert.equal(output(path, '--version'), output('bin/stasis', '--version'));
    }
    assert.equal(realpathSync(join(prefix, 'bin/criu')), join(prefix, 'bin/stasis-criu'));
    assert.match(output('bin/criu', '--version'), /^Version: \d+\.\d+/m);
    // Relative: a packager's staging directory is not where it will be.
    const moved = `${prefix}-moved`;
    symlinkSync(prefix, moved);
    try {
      assert.equal(realpathSync(join(moved, 'lib/stasis/runtimes/runc')), join(prefix, 'bin/stasis'));
    } finally {
      rmSync(moved);
    }
  });

  it('makes man pages that name every verb and option, without a complaint of the formatter', () => {
    const page = readFileSync(join(prefix, 'share/man/man8/stasis.8'), 'utf8');
    const plain = page.replaceAll('\\-', '-');
    for (const verb of verbs(output('bin/stasis', '--help'))) {
      assert.match(plain, new RegExp(`^\\.SH ${verb.toUpperCase()}$`, 'm'));
      for (const option of output('bin/stasis', verb, '--help').match(/--[a-z][a-z-]*/g) ?? [])
        assert.ok(plain.includes(option), `${verb} ${option} is not in the page`);
    }
    assert.match(readFileSync(join(prefix, 'share/man/man8/stasis-criu.8'), 'utf8'), /^\.TH STASIS-CRIU 8$/m);
    for (const name of ['stasis.8', 'stasis-criu.8']) {
      const file = join(prefix, 'share/man/man8', name);
      const formatted = spawnSync('groff', ['-man', '-ww', '-Tutf8', file], { encoding: 'utf8' });
      if (formatted.error !== undefined) {
        console.log('      not formatted: groff is not installed');
        continue;
      }
      assert.equal(formatted.stderr, '');
      // Bold is a character typed twice.
      assert.match(formatted.stdout.replace(/.\x08/g, ''), /^SEE ALSO$/m);
    }
  });

  it('completes verbs, options of a verb, and files', () => {
    const file = join(prefix, 'share/bash-completion/completions/stasis');
    const complete = (...words: string[]): string[] => {
      const script =
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _stasis; printf "%s\\n" "${COMPREPLY[@]}"';
      const said = execFileSync('bash', ['--norc', '-c', script, 'bash', file, 'stasis', ...words], {
        cwd: prefix,
        encoding: 'utf8',
      });
      return said.split('\n').filter((word) => word !== '');
    };
    assert.deepEqual(complete('ch'), ['checkpoint', 'check']);
    assert.ok(complete('').includes('exec'), "the base runtime's verbs are missing");
    assert.deepEqual(
      complete('--root', 'checkpoint', '--leave-r').filter((word) => word !== ''),
      ['--leave-running'],
    );
    assert.ok(complete('restore', '--').includes('--console-socket'));
    assert.deepEqual(complete('inspect', 'sh'), ['share']);
    execFileSync('bash', ['-n', join(prefix, 'share/bash-completion/completions/stasis-criu')]);
  });

  it('replaces an older copy, whose links may lead elsewhere, while it is in use', () => {
    const link = join(prefix, 'lib/stasis/runtimes/runc');
    rmSync(link);
    symlinkSync('/nowhere', link);
    const before = statSync(join(prefix, 'bin/stasis')).ino;
    execFileSync(process.execPath, [install, `--prefix=${prefix}`]);
    assert.equal(realpathSync(link), join(prefix, 'bin/stasis'));
    assert.notEqual(statSync(join(prefix, 'bin/stasis')).ino, before, 'a program in use was written into');
  });

  it('refuses what it does not know, and writes nothing', () => {
    const result = spawnSync(process.execPath, [install, '--prefix'], { encoding: 'utf8' });
    assert.equal(result.status, 2);
    assert.match(result.stderr, /^cannot install: unknown arguments; usage: /);
    const other = `${prefix}-other`;
    assert.equal(spawnSync(process.execPath, [install, '--prefix', other, '--force']).status, 2);
    assert.equal(existsSync(other), false);
  });
});

function verbs(overview: string): string[] {
  return [...overview.matchAll(/^ {0,2}([a-z-]+) {2,}\S/gm)].map(([, name]) => name!);
}
