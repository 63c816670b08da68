import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { findLocations } from './locations.js';
import { nativeBinding, nativeBindingNames } from './native-binding.js';

describe('native binding', () => {
  it('exports exactly what the types say', () => {
    assert.deepEqual(Object.keys(nativeBinding()).sort(), [...nativeBindingNames].sort());
  });

  it('measures the vdso of this kernel as an ELF image inside its span', () => {
    const facts = nativeBinding().getKernelFacts();
    assert.equal(facts.vdso.subarray(0, 4).toString('latin1'), '\x7fELF');
    assert.equal(facts.vdsoOffsetBytes + facts.vdso.length, facts.vdsoSpanBytes);
  });

  it('ends a program at once only where no standard stream has to be given back', () => {
    const program = `
      const loaded = { exports: {} };
      process.dlopen(loaded, ${JSON.stringify(findLocations().addon)});
      process.on('exit', () => process.exit(4));
      if (process.argv[1] === 'printed') process.stdout.write('');
      loaded.exports.exitAtOnce(3);`;
    const status = (word: string): number | null =>
      spawnSync(process.execPath, ['--eval', program, word], { stdio: ['ignore', 'pipe', 'pipe'] }).status;
    assert.equal(status('silent'), 3);
    assert.equal(status('printed'), 4);
  });

  it('tells how an adopted child ended that has ended before it is asked', async () => {
    nativeBinding().setChildSubreaper(true);
    try {
      // After the shell, which would ask how it ended.
      const child = '(while kill -0 $$ 2>/dev/null; do :; done; exit 7) >/dev/null & echo $!';
      const started = execFileSync('/bin/sh', ['-c', child], { encoding: 'utf8' });
      const pid = Number(started);
      const deadline = Date.now() + 10_000;
      while (!/\) Z /.test(readFileSync(`/proc/${pid}/stat`, 'latin1'))) {
        assert.ok(Date.now() < deadline, 'it ends');
        await new Promise((resolve) => setImmediate(resolve));
      }
      assert.deepEqual(await nativeBinding().waitForExit(pid), { code: 7, signal: 0 });
      await assert.rejects(nativeBinding().waitForExit(pid), /waitid/);
    } finally {
      nativeBinding().setChildSubreaper(false);
    }
  });

  it('claims a name only if nothing has it', () => {
    const scratch = mkdtempSync(join(tmpdir(), 'stasis-'));
    try {
      const [first, second, claimed] = ['first', 'second', 'claimed'].map((name) => join(scratch, name)) as [
        string,
        string,
        string,
      ];
      mkdirSync(first);
      mkdirSync(second);
      assert.equal(nativeBinding().renameWithoutReplacing(first, claimed), true);
      assert.equal(nativeBinding().renameWithoutReplacing(second, claimed), false);
      assert.ok(existsSync(second));
      assert.throws(() => nativeBinding().renameWithoutReplacing(first, join(scratch, 'other')), {
        call: 'renameat2',
        errorNumber: constants.errno.ENOENT,
      });
    } finally {
      rmSync(scratch, { recursive: true });
    }
  });
});
