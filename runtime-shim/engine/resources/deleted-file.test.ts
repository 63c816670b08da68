import assert from 'node:assert/strict';
import { ImageWriter } from '../../../oci-spec/images/image-file.js';
import { remap_type } from '../../../oci-spec/images/messages.js';
import { StasisError } from '../../errors/index.js';
import { ImageSetReader, ImageSetWriter } from '../image-set.js';
import { Phase } from '../plan/builder.js';
import { deletedFilesOf, readDeletedFileImage } from './deleted-file.js';
import { FileFixture, objectionsOf, statx, stepsOf } from './file-fixture.js';

const link = '/data/table (deleted)';
const stat = { device: 1n, inode: 9n, mode: 0o100640, linkCount: 0, sizeBytes: 9000n };
const kImage = 'ghost-file-1.img';
const kExternal = 40;

const usual = { uid: 7, gid: 8, mode: 0o100640, dev: 1, ino: 9n, chunks: true, size: 9000n };
const times = { atim: { tv_sec: 1n, tv_usec: 2n }, mtim: { tv_sec: 3n, tv_usec: 4n } };

interface Chunk {
  readonly off: bigint;
  readonly len: bigint;
  /** As many as `len` says, if undefined. */
  readonly bytes?: number;
}

function image(entry: object, chunks: readonly Chunk[], raw = new Uint8Array(0)): Uint8Array {
  const writer = new ImageWriter('ghost-file');
  writer.add('ghost_file_entry', { ...usual, ...entry }, raw);
  for (const { off, len, bytes } of chunks)
    writer.add('ghost_chunk_entry', { off, len }, new Uint8Array(bytes ?? Number(len)));
  return Buffer.from(writer.bytes());
}

function setOf(files: ReadonlyMap<string, Uint8Array>): ImageSetReader {
  return new ImageSetReader({
    list: () => [...files.keys()],
    read: (name) => files.get(name),
    sizeBytes: (name) => files.get(name)?.length,
    readRange: (name, offset, length) => files.get(name)?.subarray(offset, offset + length),
  });
}

const read = (bytes: Uint8Array, maximalChunks?: number): ReturnType<typeof readDeletedFileImage> =>
  readDeletedFileImage(setOf(new Map([[kImage, bytes]])), 1, maximalChunks);

function isCorrupt(pattern: RegExp): (error: unknown) => boolean {
  return (error) => error instanceof StasisError && error.code === 'IMAGE_CORRUPT' && pattern.test(error.message);
}

function withDeleted(): FileFixture {
  const fixture = new FileFixture({ deletedFiles: [statx(stat)] });
  const one = fixture.open({ link, stat, pathMatches: false, statusFlags: 0o102002 });
  const other = fixture.open({ link, stat, pathMatches: false, statusFlags: 0 });
  fixture.task({ nsPid: 1, fds: { 3: one, 4: other, 5: one } });
  return fixture;
}

describe('deleted files', () => {
  it('are told once for each open file, with the path that they had', () => {
    const encoded = withDeleted().encode();
    assert.deepEqual(objectionsOf(encoded), []);
    const { set, files } = withDeleted().model(encoded);
    assert.deepEqual(
      set
        .messages('remap-fpath')
        .map((remap) => [files.get(remap.orig_id)?.reg?.name, remap.remap_id, remap.remap_type]),
      [
        ['/data/table', 1, remap_type.GHOST],
        ['/data/table', 1, remap_type.GHOST],
      ],
    );
  });

  it('are made once, filled, and opened as often as they were open', () => {
    const fixture = withDeleted();
    const model = fixture.model(fixture.encode(), (files) => {
      files.set(
        kImage,
        image({ ...times, mode: 0o106755 }, [
          { off: 0n, len: 5n },
          { off: 8192n, len: 808n },
        ]),
      );
    });
    const ranged = { ...model, set: setOf(new Map(model.set.list().map((name) => [name, model.set.raw(name)!]))) };
    const ctx = fixture.compile({ inherited: new Map([[kImage, kExternal]]) }, ranged);
    assert.deepEqual(ctx.objections, []);
    const steps = stepsOf(ctx, 1, Phase.FILES);
    const counted = (pattern: RegExp): number => steps.filter((step) => pattern.test(step)).length;
    const held = ctx.highFdBase + 1;
    assert.equal(counted(/^sendfile/), 2);
    assert.equal(counted(new RegExp(`^ftruncate ${held} 9000$`)), 1);
    assert.equal(counted(new RegExp(`^lseek ${held} 8192 0$`)), 1);
    assert.equal(counted(new RegExp(`^fchown ${held} 7 8$`)), 1);
    assert.equal(counted(new RegExp(`^fchmod ${held} ${0o755}$`)), 1);
    assert.equal(counted(new RegExp(`^utimensat ${held} `)), 1);
    // for reading only, then by two open files
    assert.equal(counted(new RegExp(`^openat s\\d+ "${held}" `)), 3);
    assert.equal(ctx.keptForMappings, 1);
    const closed = stepsOf(ctx, 1, Phase.DESCRIPTORS).filter((step) => step.startsWith('close_range'));
    assert.equal(closed.at(-1), `close_range ${held + 1} 4294967295 0`);
  });

  it('are read in chunks and raw', () => {
    const chunks = read(image({}, [{ off: 4096n, len: 100n }]));
    assert.deepEqual([chunks.sizeBytes, chunks.data.length, chunks.data[0]?.offset], [9000, 1, 4096]);
    const raw = read(image({ chunks: undefined, size: undefined }, [], new Uint8Array(77)));
    assert.deepEqual([raw.sizeBytes, raw.data.length, raw.data[0]?.lengthBytes], [77, 1, 77]);
    const empty = read(image({ size: 0n }, []));
    assert.deepEqual([empty.sizeBytes, empty.data], [0, []]);
  });

  it('are refused with images that lie', () => {
    const past = /goes past the end/;
    assert.throws(() => read(image({}, [{ off: 8192n, len: 809n }])), isCorrupt(past));
    assert.throws(() => read(image({}, [{ off: 0n, len: 500n, bytes: 499 }])), isCorrupt(past));
    assert.throws(() => read(image({}, [{ off: 2n ** 64n - 1n, len: 1n }])), isCorrupt(past));
    assert.throws(() => read(image({ size: 1n << 60n }, [])), isCorrupt(/is of a file of/));
    assert.throws(
      () =>
        read(
          image({}, [
            { off: 0n, len: 1n },
            { off: 1n, len: 1n },
          ]),
          1,
        ),
      isCorrupt(/more than 1 stretches/),
    );
    assert.throws(() => read(Buffer.concat([image({}, []), Buffer.from([9, 0])])), isCorrupt(/no head of a stretch/));
    assert.throws(() => readDeletedFileImage(setOf(new Map()), 1), isCorrupt(/is missing/));
  });

  it('are found in older images, too, and other remaps are told apart', () => {
    const images = new ImageSetWriter();
    images.add('remap-fpath', undefined, { orig_id: 1, remap_id: 0x80000007 });
    images.add('remap-fpath', undefined, { orig_id: 2, remap_id: 5, remap_type: remap_type.LINKED });
    images.add('remap-fpath', undefined, { orig_id: 3, remap_id: 5, remap_type: remap_type.PROCFS });
    const found = deletedFilesOf(setOf(new Map(images.files().map(({ name, bytes }) => [name, bytes]))));
    assert.deepEqual([...found.images], [[1, 7]]);
    assert.deepEqual([...found.others.keys()], [2, 3]);
  });

  it('of another kind are refused', () => {
    const fixture = new FileFixture({ deletedFiles: [] });
    const directory = { ...stat, mode: 0o40755 };
    fixture.task({ nsPid: 1, fds: { 3: fixture.open({ link, stat: directory, pathMatches: false }) } });
    const linked = fixture.open({ link, stat: { ...stat, linkCount: 1 }, pathMatches: false });
    fixture.task({ nsPid: 2, parent: 1, fds: { 3: linked } });
    const objections = objectionsOf(fixture.encode());
    assert.match(objections[0] ?? '', /is the deleted directory "\/data\/table" .* whose content is in no image/);
    assert.match(objections[1] ?? '', /is the deleted file "\/data\/table" .* which has another name/);
  });
});
