import assert from 'node:assert/strict';
import { zstdCompressSync } from 'node:zlib';
import { ImageSetReader } from './image-set.js';
import { pageFileBytes, pageFileName, readPages } from './page-frames.js';

const kPage = 4096;

describe('compressed page files', () => {
  const content = Buffer.alloc(6 * kPage);
  for (let at = 0; at < content.length; at += 1) content[at] = (at * 7 + (at >> 9)) & 0xff;
  const zstd = (pages: Buffer): Buffer => zstdCompressSync(pages);

  it('are found beside plain ones, and measured', () => {
    const file = withIndex([content.subarray(0, 2 * kPage), content.subarray(2 * kPage)], zstd);
    const set = setOf({ 'pages-1.img.zst': file, 'pages-2.img': content });
    assert.equal(pageFileName(set, 1), 'pages-1.img.zst');
    assert.equal(pageFileName(set, 2), 'pages-2.img');
    assert.equal(pageFileName(set, 3), 'pages-3.img');
    assert.equal(pageFileBytes(set, 'pages-1.img.zst'), content.length);
    assert.equal(pageFileBytes(set, 'pages-2.img'), content.length);
    assert.equal(pageFileBytes(set, 'pages-3.img'), undefined);
  });

  for (const [name, compress] of [
    ['pages-1.img.zst', zstd],
    ['pages-1.img.lz4', lz4Frame],
  ] as const) {
    it(`are read across frames: ${name}`, () => {
      const file = withIndex([content.subarray(0, 2 * kPage), content.subarray(2 * kPage)], compress);
      const set = setOf({ [name]: file });
      for (let from = 0; from < 6; from += 1)
        for (let to = from + 1; to <= 6; to += 1) {
          const bytes = readPages(set, name, from * kPage, (to - from) * kPage);
          assert.ok(bytes !== undefined && content.subarray(from * kPage, to * kPage).equals(bytes));
        }
      assert.equal(readPages(set, name, 5 * kPage, 2 * kPage), undefined);
    });
  }

  it('are refused where their index is not to be believed', () => {
    const good = withIndex([content], zstd);
    const changed = (offset: number, ...bytes: number[]): Buffer => {
      const copy = Buffer.from(good);
      Buffer.from(bytes).copy(copy, copy.length - offset);
      return copy;
    };
    const hostile: readonly (readonly [Buffer, RegExp])[] = [
      [Buffer.alloc(3), /has no index$/],
      [Buffer.alloc(4096), /has no index at its end/],
      [good.subarray(1), /has frames of \d+ bytes, and \d+ bytes of room/],
      [changed(9, 0xff, 0xff, 0xff, 0xff), /an index of 4294967295 frames, more than 4194304/],
      [changed(9, 0, 0, 1, 0), /an index of 65536 frames, more than its \d+ bytes hold/],
      [changed(25, 0), /does not begin where it should/],
      [changed(17, 0, 0, 0, 0), /a frame that takes 0 bytes/],
      [changed(13, 1, 0, 0, 0), /a frame of 1 bytes/],
      [changed(13, 0, 0, 0, 1), /a frame of 16777216 bytes/],
    ];
    for (const [bytes, says] of hostile)
      assert.throws(() => pageFileBytes(setOf({ 'pages-1.img.zst': bytes }), 'pages-1.img.zst'), says);
  });

  it('are refused where a frame holds other than it should', () => {
    for (const [name, compress] of [
      ['pages-1.img.zst', zstd],
      ['pages-1.img.lz4', lz4Frame],
    ] as const) {
      const larger = withIndex([content], (pages) => compress(Buffer.concat([pages, pages])));
      assert.throws(() => readPages(setOf({ [name]: larger }), name, 0, kPage), /is damaged at 0/);
      const smaller = withIndex([content], (pages) => compress(pages.subarray(kPage)));
      assert.throws(() => readPages(setOf({ [name]: smaller }), name, 0, kPage), /is damaged at 0/);
      const cut = withIndex([content], (pages) => compress(pages).subarray(0, 40));
      assert.throws(() => readPages(setOf({ [name]: cut }), name, 0, kPage), /is damaged at 0/);
    }
  });
});

/** A frame of one block: of each 512 bytes 256 are literals, the rest is a match; the last 512 are literals. */
function lz4Frame(pages: Buffer): Buffer {
  const sequences: number[] = [];
  for (let at = 0; at < pages.length; at += 512) {
    const last = at + 512 === pages.length;
    const literals = pages.subarray(at, at + (last ? 512 : 256));
    // 15 and more: 255 each and the rest; a match is 4 bytes longer than it says
    const length = literals.length === 256 ? [241] : [255, 242];
    sequences.push(last ? 0xf0 : 0xff, ...length, ...literals, ...(last ? [] : [0, 1, 237]));
  }
  const size = Buffer.alloc(4);
  size.writeUInt32LE(sequences.length);
  return Buffer.concat([
    Buffer.from([0x04, 0x22, 0x4d, 0x18, 0x60, 0x50, 0]),
    size,
    Buffer.from(sequences),
    Buffer.alloc(4),
  ]);
}

function withIndex(parts: readonly Buffer[], compress: (pages: Buffer) => Buffer): Buffer {
  const frames = parts.map(compress);
  const index = Buffer.alloc(8 + 8 * parts.length + 9);
  index.writeUInt32LE(0x184d2a5e, 0);
  index.writeUInt32LE(index.length - 8, 4);
  frames.forEach((frame, number) => {
    index.writeUInt32LE(frame.length, 8 + 8 * number);
    index.writeUInt32LE(parts[number]!.length, 12 + 8 * number);
  });
  index.writeUInt32LE(parts.length, index.length - 9);
  index.writeUInt32LE(0x8f92eab1, index.length - 4);
  return Buffer.concat([...frames, index]);
}

function setOf(files: Readonly<Record<string, Buffer>>): ImageSetReader {
  return new ImageSetReader({
    list: () => Object.keys(files),
    read: (name) => files[name],
    sizeBytes: (name) => files[name]?.length,
    readRange: (name, offset, lengthBytes) => files[name]?.subarray(offset, offset + lengthBytes),
  });
}
