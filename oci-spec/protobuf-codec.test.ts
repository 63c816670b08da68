import assert from 'node:assert/strict';
import { makeCodec } from './protobuf-codec.js';

interface Numbers {
  int64?: bigint | undefined;
  uint64?: bigint | undefined;
  sint64?: bigint | undefined;
  fixed64?: bigint | undefined;
  sfixed64?: bigint | undefined;
}

const kOptional = 1;
const kinds = ['int64', 'uint64', 'sint64', 'fixed64', 'sfixed64'] as const;
const codec = makeCodec<{ Numbers: Numbers }>({
  Numbers: kinds.map((kind, at) => [at + 1, kind, kind, kOptional] as const),
});

describe('64-bit numbers on the wire', () => {
  const edges = [0n, 1n, 127n, 128n, (1n << 32n) - 1n, 1n << 32n, (1n << 53n) - 1n, 1n << 53n, (1n << 53n) + 1n];
  const unsigned = [...edges, (1n << 63n) + 5n, (1n << 64n) - 1n];
  const signed = [...edges, ...edges.map((value) => -value), (1n << 63n) - 1n, -(1n << 63n)];

  for (const kind of kinds)
    it(`${kind}: come back as they were, whatever their size`, () => {
      for (const value of kind === 'uint64' || kind === 'fixed64' ? unsigned : signed)
        assert.equal(codec.decode('Numbers', codec.encode('Numbers', { [kind]: value }))[kind], value, `${value}`);
    });

  it('are the bytes that the format has for them', () => {
    const hex = (message: Numbers): string => Buffer.from(codec.encode('Numbers', message)).toString('hex');
    assert.equal(hex({ int64: -1n }), '08ffffffffffffffffff01');
    assert.equal(hex({ uint64: (1n << 53n) + 1n }), '108180808080808010');
    assert.equal(hex({ sint64: -1n }), '1801');
    assert.equal(hex({ fixed64: 1n << 40n }), '210000000000010000');
    assert.equal(hex({ sfixed64: -2n }), '29feffffffffffffff');
  });
});
