import assert from 'node:assert/strict';
import protobuf from 'protobufjs';
import { MessageReader } from './message-reader.js';
import { constantList, MessageWriter } from './message-writer.js';

const numbers = ['int64', 'uint64', 'sint64', 'fixed64'] as const;
const edges = [0n, 1n, 127n, 128n, (1n << 28n) - 1n, 1n << 28n, (1n << 32n) - 1n, 1n << 32n].concat([
  (1n << 53n) - 1n,
  1n << 53n,
  (1n << 53n) + 1n,
  (1n << 56n) - 1n,
  1n << 56n,
]);
const unsigned = [...edges, (1n << 63n) - 1n, 1n << 63n, (1n << 63n) + 5n, (1n << 64n) - 1n];
const signed = [...edges, ...edges.map((value) => -value), (1n << 63n) - 1n, -(1n << 63n)];
const kTag = 8;

function written(write: (writer: MessageWriter) => void): Buffer {
  const writer = new MessageWriter(1);
  write(writer);
  return Buffer.from(writer.written());
}

function read<Value>(bytes: Uint8Array, value: (reader: MessageReader) => Value): Value {
  const reader = new MessageReader(bytes);
  assert.equal(reader.tag(), kTag);
  const result = value(reader);
  assert.equal(reader.pos, bytes.length);
  return result;
}

describe('numbers on the wire', () => {
  for (const kind of numbers)
    it(`${kind}: come back as they were, whatever their size`, () => {
      for (const value of kind === 'uint64' || kind === 'fixed64' ? unsigned : signed)
        assert.equal(
          read(
            written((writer) => writer[kind](kTag, value)),
            (reader) => reader[kind](),
          ),
          value,
          `${value}`,
        );
    });

  it('int32, uint32 and sint32: come back as they were', () => {
    for (const value of [0, 1, 127, 128, 2 ** 28, 2 ** 31 - 1]) {
      for (const kind of ['int32', 'uint32', 'sint32'] as const)
        assert.equal(
          read(
            written((writer) => writer[kind](kTag, value)),
            (reader) => reader[kind](),
          ),
          value,
        );
      for (const kind of ['int32', 'sint32'] as const)
        assert.equal(
          read(
            written((writer) => writer[kind](kTag, -value - 1)),
            (reader) => reader[kind](),
          ),
          -value - 1,
        );
    }
    assert.equal(
      read(
        written((writer) => writer.uint32(kTag, 2 ** 32 - 1)),
        (reader) => reader.uint32(),
      ),
      2 ** 32 - 1,
    );
  });

  it('are the bytes that the format has for them', () => {
    const hex = (write: (writer: MessageWriter) => void): string => written(write).toString('hex');
    assert.equal(
      hex((writer) => writer.int64(8, -1n)),
      '08ffffffffffffffffff01',
    );
    assert.equal(
      hex((writer) => writer.int32(8, -1)),
      '08ffffffffffffffffff01',
    );
    assert.equal(
      hex((writer) => writer.uint64(16, (1n << 53n) + 1n)),
      '108180808080808010',
    );
    assert.equal(
      hex((writer) => writer.sint64(24, -1n)),
      '1801',
    );
    assert.equal(
      hex((writer) => writer.fixed64(33, 1n << 40n)),
      '210000000000010000',
    );
    assert.equal(
      hex((writer) => writer.fixed32(37, 0x01020304)),
      '2504030201',
    );
    assert.equal(
      hex((writer) => writer.bool(0x808, true)),
      '881001',
    );
  });

  it('are refused where they have no end', () => {
    for (const bytes of [[], [0x80], Array<number>(11).fill(0xff)])
      for (const kind of ['uint32', 'uint64', 'end'] as const)
        assert.throws(() => new MessageReader(Uint8Array.from(bytes))[kind](), RangeError);
  });
});

describe('messages on the wire', () => {
  // What protobufjs makes of the same schema.
  const schema = protobuf.parse(
    `syntax = "proto2";
     message Owner { required uint32 uid = 1; optional string comm = 2; }
     message All { required string name = 1; repeated uint32 few = 2; optional bytes data = 3; repeated Owner owners = 4; }`,
  ).root;
  const All = schema.lookupType('All');

  it('are what another implementation reads and writes', () => {
    for (const length of [0, 1, 42, 43, 127, 128, 300, 70_000]) {
      const name = 'ä'.repeat(length);
      const message = { name, few: [0, 1, 300], data: Buffer.alloc(length, 7), owners: [{ uid: 1, comm: name }] };
      const bytes = written((writer) => {
        writer.string(10, name);
        writer.uint32s(16, message.few);
        writer.bytes(26, message.data);
        const start = writer.begin(34);
        writer.uint32(8, 1);
        writer.string(18, name);
        writer.end(start);
      });
      assert.deepEqual(bytes, Buffer.from(All.encode(message).finish()));
    }
  });

  it('have a list again that is the same in many, byte for byte', () => {
    const zeroes = constantList([0, 0, 0]);
    const once = written((writer) => writer.uint32s(16, zeroes));
    assert.equal(once.toString('hex'), '100010001000');
    assert.equal(written((writer) => writer.uint32s(16, zeroes)).toString('hex'), once.toString('hex'));
    assert.equal(written((writer) => writer.uint32s(24, zeroes)).toString('hex'), '180018001800');
    assert.throws(() => zeroes.push(1), TypeError);
  });
});
