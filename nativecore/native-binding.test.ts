import assert from 'node:assert/strict';
import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
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
