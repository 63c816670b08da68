import assert from 'node:assert/strict';
import { Struct } from '../struct.js';
import { unsupportedState, xstateFromImage, xstateLayout, xstateToImage } from './xstate.js';

/** An area in which every component that XCR0 has is in use and filled with its own bytes. */
function filled(sizeBytes: number, xfeatures: bigint, inUse: bigint = xfeatures): Uint8Array {
  const area = new Struct(sizeBytes);
  for (let at = 0; at < 416; at += 1) area.setU8(at, (at * 7 + 1) & 0xff);
  area.setU8(5, 0); // the tag word has 8 bits; its neighbour is reserved
  area.setU64(512, inUse | 3n);
  for (const [name, offset] of xstateLayout(sizeBytes, xfeatures)) {
    const bit = { ymmh: 2, bndreg: 3, bndcsr: 4, opmask: 5, zmmUpper: 6, hi16Zmm: 7, pkru: 9 }[name];
    const bytes = { ymmh: 256, bndreg: 64, bndcsr: 64, opmask: 64, zmmUpper: 512, hi16Zmm: 1024, pkru: 8 }[name];
    if ((inUse & (1n << BigInt(bit))) === 0n) continue;
    for (let at = 0; at < bytes; at += 1) area.setU8(offset + at, (at + bit * 31) & 0xff);
  }
  return area.bytes;
}

const kSse = 0x3n;
const kAvx = 0x7n;
const kMpx = 0x1fn;
const kAvx512 = 0xe7n;
const kPkru = 1n << 9n;

describe('x86 extended state', () => {
  const machines: readonly (readonly [string, number, bigint, Readonly<Record<string, number>>])[] = [
    ['SSE only', 576, kSse, {}],
    ['AVX', 832, kAvx, { ymmh: 576 }],
    ['Intel with MPX', 1088, kMpx, { ymmh: 576, bndreg: 960, bndcsr: 1024 }],
    [
      'Intel with AVX-512 and PKRU',
      2696,
      kAvx512 | kPkru,
      { ymmh: 576, opmask: 1088, zmmUpper: 1152, hi16Zmm: 1664, pkru: 2688 },
    ],
    ['AMD with AVX and PKRU', 840, kAvx | kPkru, { ymmh: 576, pkru: 832 }],
    ['AMD with AVX-512', 2432, kAvx512, { ymmh: 576, opmask: 832, zmmUpper: 896, hi16Zmm: 1408 }],
    [
      'AMD with AVX-512 and PKRU',
      2440,
      kAvx512 | kPkru,
      { ymmh: 576, opmask: 832, zmmUpper: 896, hi16Zmm: 1408, pkru: 2432 },
    ],
  ];

  for (const [machine, sizeBytes, xfeatures, offsets] of machines) {
    it(`knows the layout of ${machine}, told or not what it is`, () => {
      assert.deepEqual(Object.fromEntries(xstateLayout(sizeBytes, xfeatures)), offsets);
      // not told: room that old Intel machines had for MPX may count as a component
      const guessed = Object.fromEntries(xstateLayout(sizeBytes, undefined));
      assert.deepEqual({ ...guessed, ...offsets }, guessed);
    });

    it(`brings every register of ${machine} back`, () => {
      const before = filled(sizeBytes, xfeatures);
      const image = xstateToImage(before, xfeatures);
      assert.deepEqual(unsupportedState(image, xstateLayout(sizeBytes, xfeatures)), []);
      assert.deepEqual(xstateFromImage(image, sizeBytes, xstateLayout(sizeBytes, xfeatures)), before);
    });
  }

  it('moves state between machines with different layouts', () => {
    const image = xstateToImage(filled(2440, kAvx512 | kPkru), kAvx512 | kPkru);
    const there = xstateFromImage(image, 2696, xstateLayout(2696, kAvx512 | kPkru));
    assert.deepEqual(there, filled(2696, kAvx512 | kPkru));
  });

  it('names state that the machine lacks, but only if it is in use', () => {
    const used = xstateToImage(filled(2432, kAvx512), kAvx512);
    const unused = xstateToImage(filled(2432, kAvx512, kAvx), kAvx512);
    const small = xstateLayout(832, kAvx);
    assert.deepEqual(unsupportedState(used, small), ['opmask', 'zmmUpper', 'hi16Zmm']);
    assert.deepEqual(unsupportedState(unused, small), []);
    assert.deepEqual(xstateFromImage(unused, 832, small), filled(832, kAvx));
  });

  it('names state that nobody here knows', () => {
    const image = xstateToImage(filled(832, kAvx), kAvx);
    image.xsave!.xstate_bv |= 1n << 18n;
    assert.deepEqual(unsupportedState(image, xstateLayout(832, kAvx)), ['component 18']);
  });
});
