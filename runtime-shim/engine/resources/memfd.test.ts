import assert from 'node:assert/strict';
import { StasisError } from '../../errors/index.js';
import { ImageSetWriter } from '../image-set.js';
import { Phase } from '../plan/builder.js';
import { FileFixture, objectionsOf, statx, stepsOf } from './file-fixture.js';

const link = '/memfd:name (deleted)';
const stat = { device: 1n, inode: 9n, mode: 0o100600, sizeBytes: 5000n };

function withMemfd(): FileFixture {
  const fixture = new FileFixture({
    sharedMemory: [{ link: Buffer.from(link), stat: statx(stat), seals: 0 }],
  });
  const one = fixture.open({ link, stat, pathMatches: false });
  const other = fixture.open({
    link,
    stat,
    pathMatches: false,
    statusFlags: 0,
    fdinfo: 'pos:\t77\nflags:\t0100000\nmnt_id:\t20\n',
  });
  fixture.task({ nsPid: 1, fds: { 3: one, 4: other, 5: one } });
  return fixture;
}

describe('memfds', () => {
  it('are made once, and opened as often as they were open', () => {
    const fixture = withMemfd();
    const encoded = fixture.encode();
    assert.deepEqual(objectionsOf(encoded), []);
    const model = fixture.model(encoded);
    assert.deepEqual(
      model.set.messages('memfd').map(({ name, size, shmid, seals, mode }) => ({ name, size, shmid, seals, mode })),
      [{ name: 'name', size: 5000n, shmid: 9, seals: 0, mode: 0o100600 }],
    );
    const ctx = fixture.compile({}, model);
    const steps = stepsOf(ctx, 1, Phase.FILES);
    const counted = (pattern: RegExp): number => steps.filter((step) => pattern.test(step)).length;
    assert.equal(counted(/^memfd_create "name" 3$/), 1);
    assert.equal(counted(/^ftruncate s\d+ 5000$/), 1);
    const held = ctx.highFdBase + 1;
    assert.equal(counted(new RegExp(`^openat s\\d+ "${held}" `)), 2);
    assert.equal(counted(/^lseek s\d+ 77 0$/), 1);
    // what is kept is not closed together with the other numbers
    assert.equal(ctx.keptDescriptors, 1);
    const closed = stepsOf(ctx, 1, Phase.DESCRIPTORS).filter((step) => step.startsWith('close_range'));
    assert.equal(closed.at(-1), `close_range ${held + 1} 4294967295 0`);
  });

  it('of huge pages are refused, and so are files that name none', () => {
    const fixture = withMemfd();
    const encoded = fixture.encode();
    const change = (message: object): ReturnType<FileFixture['model']> =>
      fixture.model(encoded, (files) => {
        const images = new ImageSetWriter();
        const usual = { name: 'name', uid: 0, gid: 0, size: 5000n, shmid: 9, seals: 0, inode_id: 1n };
        images.add('memfd', undefined, { ...usual, ...message });
        files.set('memfd.img', images.files()[0]!.bytes);
      });
    assert.deepEqual(objectionsOf(fixture.compile({}, change({ hugetlb_flag: 4 }))), [
      'the memfd "name" is made of huge pages (hugetlb)',
    ]);
    for (const wrong of [{ inode_id: 7n }, { size: 1n << 60n }, { name: 'x'.repeat(250) }])
      assert.throws(
        () => fixture.compile({}, change(wrong)),
        (error: unknown) => error instanceof StasisError && error.code === 'IMAGE_CORRUPT',
        JSON.stringify(Object.keys(wrong)),
      );
  });
});
