import assert from 'node:assert/strict';
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
});
