import assert from 'node:assert/strict';
import { boundaryCodec } from './core-process.js';

describe('messages of the control stream', () => {
  it('come back as they were, with what the wire leaves out', () => {
    const codec = boundaryCodec();
    const step = {
      op: 'mprotect',
      args: [{ immediate: 1n }, { slot: 3 }],
      moreArgs: [0n, 128n, (1n << 64n) - 1n],
      toleratedErrnos: [1, 22],
    };
    const read = codec.decode('stasis.plan.Step', codec.encode('stasis.plan.Step', step));
    assert.deepEqual(read, { ...step, outSlot: 0, hasExpected: false, expected: 0n, from: '', note: '' });
  });

  it('keep to the maker what is not sent', () => {
    const codec = boundaryCodec();
    assert.equal(codec.encode('stasis.plan.Step', { from: 'file[9]', note: 'a path' }).length, 0);
  });

  it('are read with lists packed or not, whichever the schema says', () => {
    const codec = boundaryCodec();
    const packed = Buffer.from('4a020102', 'hex');
    const single = Buffer.from('48014802', 'hex');
    for (const bytes of [packed, single]) assert.deepEqual(codec.decode('stasis.plan.Step', bytes).moreArgs, [1n, 2n]);
  });

  it('are refused where the last number of a list runs past its end', () => {
    assert.throws(() => boundaryCodec().decode('stasis.plan.Step', Buffer.from('4a0180804001', 'hex')), RangeError);
  });

  it('are refused where they are nested without end', () => {
    let failure: Uint8Array = new Uint8Array(0);
    const nest = (): Uint8Array => {
      const { length } = failure;
      const prefix = length < 128 ? [0x5a, length] : [0x5a, (length & 127) | 128, length >>> 7];
      return Uint8Array.from([...prefix, ...failure]);
    };
    for (let depth = 1; depth < 64; depth += 1) failure = nest();
    assert.ok(boundaryCodec().decode('stasis.control.Failure', failure));
    failure = nest();
    assert.throws(() => boundaryCodec().decode('stasis.control.Failure', failure), /nested more than 64 deep/);
  });
});
