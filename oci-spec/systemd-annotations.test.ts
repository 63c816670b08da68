import assert from 'node:assert/strict';
import { systemdAnnotations } from './systemd-annotations.js';

const property = (name: string, text: string): unknown => {
  const [found] = systemdAnnotations({ [`org.systemd.property.${name}`]: text, other: 'x' });
  return found;
};

describe('annotations for systemd', () => {
  it('are values with a type', () => {
    const cases: readonly (readonly [text: string, signature: string, value: unknown])[] = [
      ['true', 'b', true],
      ["'inactive-or-failed'", 's', 'inactive-or-failed'],
      ['"it\'s \\"quoted\\""', 's', 'it\'s "quoted"'],
      ['5', 'i', 5],
      ['-5', 'i', -5],
      ['uint32 4294967295', 'u', 4294967295],
      ['uint64 123456789', 't', 123456789n],
      ['int64 -1', 'x', -1n],
      ['0.5', 'd', 0.5],
      ["['crio.service', 'b.service']", 'as', ['crio.service', 'b.service']],
      ['@as []', 'as', []],
      ['[uint64 1, 2]', 'at', [1n, 2n]],
    ];
    for (const [text, signature, value] of cases)
      assert.deepEqual(property('After', text), ['After', { signature, value }], text);
  });

  it('may give seconds', () => {
    assert.deepEqual(property('TimeoutStopSec', 'uint64 5'), [
      'TimeoutStopUSec',
      { signature: 't', value: 5_000_000n },
    ]);
    assert.deepEqual(property('TimeoutStopSec', '0.25'), ['TimeoutStopUSec', { signature: 't', value: 250_000n }]);
    assert.deepEqual(property('TimeoutStopUSec', 'uint64 5'), ['TimeoutStopUSec', { signature: 't', value: 5n }]);
    assert.throws(() => property('TimeoutStopSec', "'5'"), /is no number of seconds/);
  });

  it('are refused in any other form', () => {
    for (const text of [
      '',
      'yes',
      "'open",
      '[1, "a"]',
      '[]',
      'uint32 -1',
      'uint32 4294967296',
      'uint32 true',
      '5 6',
      '[',
    ])
      assert.throws(() => property('After', text), /annotations\["org.systemd.property.After"\] is no value/, text);
    assert.throws(() => property('A b', 'true'), /names no property/);
    assert.throws(() => property('X', 'true'), /names no property/);
  });
});
