import assert from 'node:assert/strict';
import protobuf from 'protobufjs';
import * as wire from './wire.js';

const edges = [0n, 1n, 127n, 128n, (1n << 28n) - 1n, 1n << 28n, (1n << 32n) - 1n, 1n << 32n].concat([
  (1n << 53n) - 1n,
  1n << 53n,
  (1n << 53n) + 1n,
  (1n << 56n) - 1n,
  1n << 56n,
]);
const unsigned = [...edges, (1n << 63n) - 1n, 1n << 63n, (1n << 63n) + 5n, (1n << 64n) - 1n];
const signed = [...edges, ...edges.map((value) => -value), (1n << 63n) - 1n, -(1n << 63n)];
const kinds = {
  uint64: [wire.writeUint64, wire.readUint64, unsigned],
  int64: [wire.writeInt64, wire.readInt64, signed],
  sint64: [wire.writeSint64, wire.readSint64, signed],
  fixed64: [wire.writeFixed64, wire.readFixed64, unsigned],
} as const;

function written(write: (writer: wire.Writer) => void): string {
  const writer = wire.newWriter();
  write(writer);
  return Buffer.from(writer.finish()).toString('hex');
}

describe('numbers of 64 bits on the wire', () => {
  for (const [kind, [write, read, values]] of Object.entries(kinds))
    it(`${kind}: come back as they were, whatever their size`, () => {
      for (const value of values) {
        const reader = wire.newReader(
          Buffer.from(
            written((writer) => write(writer, value)),
            'hex',
          ),
        );
        assert.equal(read(reader), value);
        assert.equal(reader.pos, reader.len);
      }
    });

  it('are the bytes that the format has for them', () => {
    assert.equal(
      written((writer) => wire.writeInt64(writer, -1n)),
      'ffffffffffffffffff01',
    );
    assert.equal(
      written((writer) => wire.writeUint64(writer, (1n << 53n) + 1n)),
      '8180808080808010',
    );
    assert.equal(
      written((writer) => wire.writeSint64(writer, -1n)),
      '01',
    );
    assert.equal(
      written((writer) => wire.writeFixed64(writer, 1n << 40n)),
      '0000000000010000',
    );
  });

  it('are refused where they have no end', () => {
    for (const bytes of [[], [0x80], Array<number>(11).fill(0xff)])
      for (const read of [wire.readUint64, wire.readInt64, wire.readSint64, wire.readEnd])
        assert.throws(() => read(wire.newReader(Uint8Array.from(bytes))), Error);
    assert.throws(() => wire.readFixed64(wire.newReader(new Uint8Array(7))), RangeError);
    assert.throws(() => wire.readEnd(wire.newReader(Uint8Array.from([2, 0]))), RangeError);
  });
});

describe('lists that are the same in many messages', () => {
  const zeroes = wire.constantList([0, 0, 0]);
  const asField =
    (field: number) =>
    (writer: wire.Writer): void =>
      wire.writeList(writer, field, zeroes, (to, values) => {
        for (const value of values) to.uint32(field << 3).uint32(value);
      });

  it('are the same bytes each time, for each field', () => {
    assert.equal(written(asField(2)), '100010001000');
    assert.equal(written(asField(2)), '100010001000');
    assert.equal(written(asField(3)), '180018001800');
    const List = protobuf.parse('syntax = "proto2"; message List { repeated uint32 few = 2; }').root.lookupType('List');
    assert.equal(Buffer.from(List.encode({ few: zeroes }).finish()).toString('hex'), written(asField(2)));
  });

  it('cannot be changed', () => {
    assert.throws(() => zeroes.push(1), TypeError);
  });
});
