import assert from 'node:assert/strict';
import { FrameReader, frame, kMaxFrameBytes } from './frames.js';

describe('control frames', () => {
  it('gives back what was framed, however the bytes are cut', () => {
    const bodies = [
      Buffer.alloc(0),
      Buffer.from('a'),
      Buffer.alloc(127, 1),
      Buffer.alloc(128, 2),
      Buffer.alloc(70000, 3),
    ];
    const stream = Buffer.concat(bodies.map((body) => frame(body)));
    for (const step of [1, 7, 4096, stream.length]) {
      const reader = new FrameReader();
      const got: Buffer[] = [];
      for (let at = 0; at < stream.length; at += step) {
        reader.push(stream.subarray(at, at + step));
        for (let body = reader.next(); body !== undefined; body = reader.next()) got.push(Buffer.from(body));
      }
      assert.deepEqual(got, bodies);
    }
  });

  it('refuses a length beyond any message before waiting for its bytes', () => {
    const reader = new FrameReader();
    reader.push(Buffer.from([0xff, 0xff, 0xff, 0xff, 0x7f]));
    assert.throws(() => reader.next(), RangeError);
    assert.ok(kMaxFrameBytes > 1 << 20);
  });
});
